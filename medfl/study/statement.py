"""What a study without differential privacy may say of privacy: nothing is promised, everything is listed."""

from typing import Any

from medfl.privacy.trust import privacy_statement
from medfl.study.model import Study


def plain_statement(study: Study) -> dict[str, Any]:
    return privacy_statement(
        study.update.channel.kind,
        places=study.tells_places,
        prototypes=study.sends_prototypes,
        snapshots=study.sends_snapshots,
        probes=study.tells_losses,
    )
