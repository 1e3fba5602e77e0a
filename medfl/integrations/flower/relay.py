"""The ClientApp: brings each message to the site's medfl service, and its answer back.

Flower starts a new process for every message, so there is nothing here: no state, no images, no key. Settings are the
SuperNode's own (`--node-config`), never the server's:

    medfl-home="/srv/medfl"   the site's home, whose service listens there (`medfl site start --flower`)
    medfl-start=true          start that service when it does not run
"""

from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from medfl.errors import InputError
from medfl.integrations.flower.content import content, payload
from medfl.integrations.flower.errand import ask

app = ClientApp()


@app.query()  # type: ignore[untyped-decorator]
def relay(message: Message, context: Context) -> Message:
    home = context.node_config.get("medfl-home")
    if not isinstance(home, str):
        raise InputError.at("--node-config", "has no medfl-home", """give --node-config 'medfl-home="FOLDER"'""")
    answer = ask(Path(home), payload(message), bool(context.node_config.get("medfl-start", False)))
    return Message(content=content(answer), reply_to=message)
