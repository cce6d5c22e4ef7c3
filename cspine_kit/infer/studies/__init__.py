"""Studies on their way: listed, read ahead, answered by devices, and none of them may stop it."""
