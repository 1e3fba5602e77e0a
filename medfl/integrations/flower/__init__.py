"""medfl over Flower (extra `flower`): Flower moves bytes between a coordinator and its sites, and can neither read nor
change them.

A ServerApp runs medfl's own coordinator, a ClientApp hands what it gets to the site's medfl service and back. All that
counts at a hospital, its policy, approval, audit log and ledger, is that service's, whatever Flower starts or ends.
Written against Flower's public interface only: `flwr.app`, `flwr.clientapp`, `flwr.serverapp` and its commands.
"""
