"""mesh and logical-axis rules."""
