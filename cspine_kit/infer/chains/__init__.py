"""Every fold's networks and stack on one study, and how much of them there is time for."""
