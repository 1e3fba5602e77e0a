"""A third party that holds the key of encrypted sums: it trains nothing, sees no single update, and decrypts what is
rounded to the grid."""

from pathlib import Path
from typing import Any

from medfl.audit.log import AuditLog
from medfl.errors import RunError
from medfl.learning.messages import SiteInfo
from medfl.privacy.channels.base import Identity, Message, RoundContext, SiteEnd
from medfl.site.answering import Answering
from medfl.site.memory import DiskMemory
from medfl.site.roster import check_roster
from medfl.study.build import build_channel
from medfl.study.load import study_from_json
from medfl.study.model import Study
from medfl.transport.serving import info_json
from medfl.update.wire import Buffer, parts


class KeyHolder(Answering):
    def __init__(self, folder: Path, name: str, identity: Identity) -> None:
        audit = AuditLog.open(folder / "audit.log", f"key-holder {name}")
        super().__init__(name, folder / "work", audit)
        self._identity = identity
        self._roster = folder / "pki" / "roster.json"
        self._memory = DiskMemory(folder / "work" / "runs")
        self._study: Study | None = None
        self._end: SiteEnd | None = None

    def do(self, id_: str, kind: str, header: dict[str, Any], buffers: list[memoryview]) -> list[Buffer]:
        if kind == "join":
            return self._join(header)
        if kind == "begin":
            return self._begin(header)
        if kind == "exchange" and self._end is not None:
            answer = self._end.answer(str(header["stage"]), Message(header["message"], tuple(buffers)))
            return parts({"answer": "message", "message": dict(answer.header)}, answer.buffers)
        raise RunError.at(f"key holder {self.name}", f"was asked to {kind[:40]!r}: it keeps a key, and nothing else")

    def _join(self, header: dict[str, Any]) -> list[Buffer]:
        self._study = study_from_json(header["study"])
        named = getattr(self._study.update.channel, "key_holder", None)
        if named != self.name:
            raise RunError.at(
                f"key holder {self.name}",
                f"is not the key holder of the study: that is {named or 'one of the sites'}",
                f"set update.channel.key_holder: {self.name}",
            )
        self.audit.append("joined", {"study": self._study.name})
        self.say("ready")
        return parts({"answer": "open", "info": info_json(SiteInfo(self.name, {}, {}, self._identity.public.hex()))})

    def _begin(self, header: dict[str, Any]) -> list[Buffer]:
        if self._study is None:
            raise RunError.at(f"key holder {self.name}", "was asked before it joined a study")
        check_roster(self._roster, self.name, header["roster"])
        self._memory.begin(str(header["run"]))
        roster = {party: bytes.fromhex(key) for party, key in header["roster"].items()}
        self._end = build_channel(self._study).site(self._identity, roster, self._guard)
        self.audit.append("begun", {"run": str(header["run"])})
        return parts({"answer": "begun", "heads": {}})

    def _guard(self, context: RoundContext, survivors: tuple[str, ...]) -> None:
        self._memory.opening(context.round, survivors)
        self.audit.append("opens", {"run": context.run, "round": context.round, "sites": len(survivors)})
