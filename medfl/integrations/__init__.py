"""medfl inside other systems. Each folder needs the extra of its name."""
