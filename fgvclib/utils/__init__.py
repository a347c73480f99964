"""Small tools that know nothing of the paper: files, progress bars, devices, processes."""
