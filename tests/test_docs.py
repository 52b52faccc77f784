"""Every block of code in the README and the manual is run, and does what the text says."""

from pathlib import Path

import pytest

from tests.conftest import Certificates
from tests.documents import Scene, play, read_scenes
from tests.support import ROOT, has

PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]
SCENES = [scene for page in PAGES for scene in read_scenes(page)]


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_program_of_the_manual_does_what_the_text_says(
    scene: Scene, tmp_path: Path, certificates: Certificates
) -> None:
    for module in scene.program.hints.get("needs", "").split(","):
        if module and not has(module):
            pytest.skip(f"needs {module}")
    for name, path in (
        ("ca.pem", certificates.ca),
        ("cert.pem", certificates.server_cert),
        ("key.pem", certificates.server_key),
        ("client.pem", certificates.client_cert),
        ("client.key", certificates.client_key),
    ):
        (tmp_path / name).symlink_to(path)
    play(scene, tmp_path)
