import shutil
from collections.abc import Iterator

import pytest
from toys.browser import TOKEN, Browser, Client
from toys.watched import play, study_of

from medfl.report.dashboard.server import Dashboard, serve
from medfl.report.dashboard.state import LiveState


@pytest.fixture
def state() -> LiveState:
    made = LiveState(study_of())
    play(made)
    return made


@pytest.fixture
def dashboard(state: LiveState) -> Iterator[Dashboard]:
    pytest.importorskip("uvicorn")
    found = serve(state, token=TOKEN)
    yield found
    found.stop()


@pytest.fixture
def client(dashboard: Dashboard) -> Client:
    """A reader with a session."""
    found = Client(int(dashboard.address.rstrip("/").rpartition(":")[2]))
    found.enter(TOKEN)
    return found


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if driver is None or chromium is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    found = Browser(driver, chromium, tmp_path_factory.mktemp("browser"))
    yield found
    found.quit()
