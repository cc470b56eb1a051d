"""Any spelling of a ResNet to the one spelling of the `forward` stage."""
