"""Image augmentation on the device, inside the compiled step."""
