"""``resolve`` and the cache without a network: shipped names, folders, and a hand-made cache."""

from pathlib import Path

import pytest

from hasten.checkpoints import hub
from hasten.core.errors import CheckpointError, InvalidOption, ModelNotFound

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """Return an empty cache, with the hub offline.

    The client reads its settings once, so the test sets its constants.
    """
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def add_model(cache: Path, name: str, files: dict[str, str]) -> Path:
    """Store a model as the hub client does, and return the folder of its snapshot.

    The client stores blobs, a snapshot of links to them, and the branch's commit.
    """
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    for folder in (repo / "blobs", snapshot, repo / "refs"):
        folder.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for number, (file, text) in enumerate(files.items()):
        (repo / "blobs" / f"{number}").write_text(text)
        (snapshot / file).symlink_to(Path("../../blobs") / f"{number}")
    return snapshot


COMPLETE = {"config.json": "{}", "model.safetensors": "x" * 100}


def test_a_cached_model_needs_no_network(cache):
    snapshot = add_model(cache, "someone/small-model", COMPLETE)
    assert hub.resolve("someone/small-model", quiet=True) == snapshot
    assert hub.resolve("someone/small-model", COMMIT, quiet=True) == snapshot


def test_a_folder_resolves_to_itself(tmp_path, cache):
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_a_shipped_name_takes_precedence_over_a_folder(tmp_path, cache, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.resolve("demo") == hub.SHIPPED["demo"]
    assert hub.resolve("./demo") == Path("demo")


def test_the_shipped_models_are_complete():
    for name in hub.SHIPPED:
        folder = hub.resolve(name)
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in folder.iterdir()}
    for name in hub.SHIPPED_HEADS:
        assert {"config.json", "model.safetensors"} <= {file.name for file in hub.resolve(name).iterdir()}
    assert sum(file.stat().st_size for file in hub.SHIPPED["demo"].parent.rglob("*") if file.is_file()) < 40 * 2**20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("someone/smal-model", ["'someone/smal-model'", "HF_HUB_OFFLINE", "Did you mean 'someone/small-model'"]),
        ("demos", ["'demos'", "Did you mean 'demo'"]),
        ("./no/such/folder", ["no such model folder", "'./no/such/folder'"]),
        ("a/b/c", ["no such model folder"]),
        ("not a name", ["no such model folder"]),
    ],
)
def test_an_unknown_name_offers_the_nearest(cache, name, expected):
    add_model(cache, "someone/small-model", COMPLETE)
    with pytest.raises(ModelNotFound) as caught:
        hub.resolve(name, quiet=True)
    assert [part for part in expected if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


def test_a_misspelt_folder_offers_its_sibling(tmp_path, cache):
    (tmp_path / "qwen-tiny").mkdir()
    (tmp_path / "qwen-tiny" / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"Did you mean .*qwen-tiny"):
        hub.resolve(f"{tmp_path}/qwen-tyni")


def test_a_file_is_not_a_model(tmp_path, cache):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelNotFound, match="is a file"):
        hub.resolve(str(tmp_path / "model.safetensors"))


def test_a_gguf_file_is_a_model(tmp_path, cache):
    (tmp_path / "a.gguf").touch()
    assert hub.resolve(str(tmp_path / "a.gguf")) == tmp_path / "a.gguf"
    with pytest.raises(InvalidOption, match="and this is a file"):
        hub.resolve(str(tmp_path / "a.gguf"), "main")
    with pytest.raises(ModelNotFound, match="no such"):
        hub.resolve(str(tmp_path / "b.gguf"))


def test_a_folder_of_gguf_files_names_them(tmp_path, cache):
    for name in ("b.gguf", "a.gguf", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ModelNotFound, match=rf"holds GGUF files.*got a.gguf, b.gguf.*Give the file: {tmp_path}/a.gguf"):
        hub.resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_a_gguf_file_without_the_suffix_says_so(tmp_path, cache):
    """Ollama names its blobs after their hash."""
    (tmp_path / "sha256-0123").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(ModelNotFound, match=r"link to it whose name ends in \.gguf"):
        hub.resolve(str(tmp_path / "sha256-0123"))


def test_a_missing_gguf_file_is_not_looked_for_on_the_hub(tmp_path, cache, monkeypatch):
    (tmp_path / "qwen.Q4_K_M.gguf").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFound, match=r"no such GGUF file: got 'qwen.Q4_K_N.gguf'\. Did you mean 'qwen.Q4_K_M.gguf'"):
        hub.resolve("qwen.Q4_K_N.gguf")


@pytest.mark.parametrize("files", [{"config.json": "{}"}, {"params": "x"}])
def test_a_hub_model_of_gguf_files_says_how_to_get_one(cache, files):
    add_model(cache, "someone/small-GGUF", files)
    with pytest.raises(ModelNotFound, match=r"no GGUF files\. Download one with: hf download someone/small-GGUF NAME\.gguf"):
        hub.resolve("someone/small-GGUF", quiet=True)


def test_an_incomplete_download_is_refused(cache):
    """The hub client stores the file list of a revision, and one of its files is missing."""
    from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache

    add_model(cache, "someone/half", {"config.json": "{}"})
    entry = TreeCacheEntry(size=100, blob_id="0", lfs_sha256=None, lfs_size=None, xet_hash=None)
    write_tree_cache(str(cache / "models--someone--half"), COMMIT, {"config.json": entry, "model.safetensors": entry})
    with pytest.raises(CheckpointError, match=r"is incomplete.*hasten pull someone/half"):
        hub.resolve("someone/half", quiet=True)


def test_pickles_are_never_downloaded(cache, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    requested = {}

    def download(name, **options):
        requested.update(options)
        return str(add_model(cache, name, COMPLETE))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub.resolve("someone/new", quiet=True)
    listing = [
        "config.json",
        "pytorch_model.bin",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "w.pt",
        "m.pkl",
    ]
    listing += ["tokenizer.json", "tokenizer.model", "merges.txt", "original/consolidated.safetensors", "code.py", "model.ckpt"]
    patterns = {key: requested[key] for key in ("allow_patterns", "ignore_patterns")}
    assert set(filter_repo_objects(listing, **patterns)) == {
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
    }


@pytest.mark.parametrize("quiet", [True, False])
def test_a_quiet_download_shows_no_progress_bar(cache, monkeypatch, quiet):
    silent = []

    def download(name, *, tqdm_class, **options):
        silent.append(tqdm_class is not None and tqdm_class(total=3, disable=False).disable)
        return str(add_model(cache, name, COMPLETE))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    hub.resolve("someone/new", quiet=quiet)
    assert silent == [quiet]


def test_models_are_listed_and_removed(cache):
    add_model(cache, "b/two", COMPLETE)
    add_model(cache, "A/one", COMPLETE)
    add_model(cache, "c/pickled", {"config.json": "{}", "pytorch_model.bin": "x"})
    models = hub.cached_models()
    assert [(model.name, model.commit, model.size) for model in models] == [("A/one", COMMIT, 102), ("b/two", COMMIT, 102)]
    assert hub.remove("A/one") == 102
    assert [model.name for model in hub.cached_models()] == ["b/two"]
    with pytest.raises(ModelNotFound, match="Did you mean 'b/two'"):
        hub.remove("b/tow")
    with pytest.raises(InvalidOption, match="ships inside"):
        hub.remove("demo")


def test_a_missing_cache_is_empty(cache):
    cache.rmdir()
    assert hub.cached_models() == []


def test_a_revision_of_a_folder_is_refused(tmp_path, cache):
    with pytest.raises(InvalidOption, match="revision"):
        hub.resolve(str(tmp_path), "main")


LONG_NAMES = ["a" * 300, "x/" * 3000, "a" * 10_000, "./" + "b" * 300]


@pytest.mark.parametrize("name", ["", *LONG_NAMES, "a\0b", "~no-such-user/model", "\ud800"])
def test_a_name_that_no_model_has_is_refused(name: str, cache: Path) -> None:
    with pytest.raises(ModelNotFound) as error:
        hub.resolve(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("revision", ["", "a" * 300, "../../main", "refs/../x", "/etc/passwd", "a\0b", "a b", "é"])
def test_a_revision_is_no_path(revision: str, cache: Path) -> None:
    with pytest.raises(ModelNotFound, match="not a revision"):
        hub.resolve("someone/model", revision)


def test_a_cache_that_is_no_folder_is_empty(cache: Path) -> None:
    cache.rmdir()
    cache.touch()
    assert hub.cached_models() == []
