"""medfl: federated training of medical-imaging models across hospitals."""

__version__ = "0.1.0"
