"""The digest of the source code that cached features depend on."""

import shutil

import pytest

from tljax.features.feature_cache import CODE
from tljax.storage.source_digest import PACKAGE, digest_files, imported_files, source_digest


def test_imported_files_follow_indirect_imports(tmp_path):
    package = tmp_path / "pkg"
    (package / "sub").mkdir(parents=True)
    sources = {
        "__init__.py": "",
        "a.py": "import numpy\nfrom pkg.sub import b, function\n",
        "sub/__init__.py": "from pkg.c import constant\n",
        "sub/b.py": "def late():\n    import pkg.d\n",
        "c.py": "import pkg.a\nconstant = 1\n",
        "d.py": "",
        "unused.py": "import pkg.a\n",
    }
    for name, text in sources.items():
        (package / name).write_text(text)
    files = [path.relative_to(package).as_posix() for path in imported_files(("pkg.a",), package)]
    assert files == ["a.py", "c.py", "d.py", "sub/__init__.py", "sub/b.py"]


@pytest.fixture
def package(tmp_path):
    return shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))


def test_digest_depends_on_every_imported_file(package):
    files = imported_files(CODE, package)
    names = {path.relative_to(package).as_posix() for path in files}
    assert names >= {"models/layers.py", "models/backbones/vgg.py", "weights/preprocess.py", "augment/affine.py"}
    digests = {digest_files(files, package)}
    assert digests == {source_digest.__wrapped__(CODE, package)}
    for path in files:
        path.write_bytes(path.read_bytes() + b"\n")
        digests.add(digest_files(files, package))
    assert len(digests) == len(files) + 1
