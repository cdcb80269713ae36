"""What must happen before anything else is imported: the torchvision shim, in this process and in its children."""
