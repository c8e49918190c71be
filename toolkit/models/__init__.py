"""Networks by name: CIFAR-style ResNets and torchvision's, their features, and a count of the images they saw."""
