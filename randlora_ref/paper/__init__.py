"""What the paper states and prints, checked: ``claims`` and ``counts``."""
