"""Headers: the files of a study, and what each frame says about itself."""
