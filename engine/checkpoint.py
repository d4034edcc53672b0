"""Checkpoint: the files of a Moshi in Kyutai's layout, in a folder or a Hugging Face repository.

config.json names the others (`moshi_name`, `mimi_name`, `tokenizer_name`, `lora_name`, each a file of the
same place, `hf://owner/repo/path` or `file://path`); without it Moshi 7B's defaults apply (Kyutai
moshi/models/loaders.py `CheckpointInfo`). Finding and downloading only; nothing here makes a tensor.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.model.config import LMConfig
from engine.weights import CheckpointError

__all__ = ["DEFAULT_REPO", "Checkpoint", "CheckpointError"]

logger = logging.getLogger(__name__)

DEFAULT_REPO = "kyutai/moshiko-pytorch-bf16"
_NAMES = {
    "moshi_name": "model.safetensors",
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_name": "tokenizer_spm_32k_3.model",
    "mimi_config_name": None,
    "lora_name": None,
    "voices_name": None,
}
_NOT_LM = {"model_type", "lm_gen_config", "tts_config", "stt_config", "model_id", "codec", *_NAMES}
_DUPLEX = {"moshi", "hibiki"}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Where everything is, and what config.json says of it."""

    name: str
    """Folder name or repository, for banner and records."""
    weights: Path
    codec_weights: Path
    tokenizer: Path
    lm: LMConfig
    """What the weights hold."""
    codec: dict[str, Any] = field(default_factory=dict)
    """`{"type": "mimi"}`, or what config.json's `codec` says, with `config` (a path) for Mimi's own JSON."""
    sampling: dict[str, float] = field(default_factory=dict)
    """`lm_gen_config`: temp, temp_text, top_k, top_k_text."""
    lora: Path | None = None
    lora_scaling: float = 2.0
    model_type: str = "moshi"
    voices: dict[str, Path] = field(default_factory=dict)
    """Voice prompts by name: the allow-list of `Persona.voice`."""

    @classmethod
    def find(cls, source: str | Path, revision: str | None = None) -> Checkpoint:
        """A local folder, or `owner/repo` (downloaded with progress, resumable, from the cache when offline).

        Raises CheckpointError naming the file, where it was looked for and the command to run.
        """
        folder = Path(source).expanduser()
        place: _Place = _Folder(folder) if folder.is_dir() else _Repository(str(source), revision)
        raw = place.config()
        names: dict[str, Any] = {key: raw.get(key, default) for key, default in _NAMES.items()}
        config = LMConfig.read({key: value for key, value in raw.items() if key not in _NOT_LM}, place.label)
        model_type = raw.get("model_type", "moshi")
        if model_type not in _DUPLEX:
            raise CheckpointError(f"{place.label} is a {model_type} model; a call needs moshi or hibiki")
        codec = dict(raw.get("codec", {"type": "mimi"}))
        if names["mimi_config_name"]:
            codec["config"] = str(place.get(names["mimi_config_name"], "mimi_config_name"))
        voices = place.get(names["voices_name"], "voices_name") if names["voices_name"] else place.voices()
        return cls(
            name=place.name,
            weights=place.get(names["moshi_name"], "moshi_name"),
            codec_weights=place.get(names["mimi_name"], "mimi_name"),
            tokenizer=place.get(names["tokenizer_name"], "tokenizer_name"),
            lm=config,
            codec=codec,
            sampling=raw.get("lm_gen_config", {}),
            lora=place.get(names["lora_name"], "lora_name") if names["lora_name"] else None,
            lora_scaling=raw.get("lora_scaling", 2.0),
            model_type=model_type,
            voices=list_voices(voices),
        )


def list_voices(folder: Path | None) -> dict[str, Path]:
    """Voice prompts (.pt, .safetensors) of a folder by their names without the ending."""
    if folder is None or not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in (".pt", ".safetensors")}


class _Place:
    """Where files are looked for."""

    name: str
    label: str

    def get(self, name: str, key: str) -> Path:
        """The file of that name; `hf://` and `file://` names lead elsewhere."""
        if name.startswith("hf://"):
            owner, repo, path = [*name.removeprefix("hf://").split("/", 2), "", ""][:3]
            return _Repository(f"{owner}/{repo}", None).fetch(path, key)
        if name.startswith("file://"):
            path_here = Path(name.removeprefix("file://"))
            if not path_here.exists():
                raise CheckpointError(f"{path_here} is missing; {self.label} names it as {key}")
            return path_here
        return self.fetch(name, key)

    def fetch(self, name: str, key: str) -> Path:
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        raise NotImplementedError

    def voices(self) -> Path | None:
        return None


class _Folder(_Place):
    def __init__(self, folder: Path) -> None:
        self.folder, self.name, self.label = folder, folder.name, str(folder / "config.json")

    def fetch(self, name: str, key: str) -> Path:
        path = self.folder / name
        if not path.exists():
            raise CheckpointError(
                f"{path} is missing (config key {key}). Put it there, or fetch the whole checkpoint: "
                f"hf download {DEFAULT_REPO} --local-dir {self.folder}"
            )
        return path

    def config(self) -> dict[str, Any]:
        path = self.folder / "config.json"
        return _read_json(path) if path.exists() else {}

    def voices(self) -> Path | None:
        return self.folder / "voices"


class _Repository(_Place):
    def __init__(self, repo: str, revision: str | None) -> None:
        if repo.count("/") != 1:
            raise CheckpointError(
                f"{repo!r} is neither a folder here nor a Hugging Face repository (owner/name). "
                "A small random model to try with: python -m engine.seeded DIR"
            )
        self.repo, self.revision, self.name, self.label = repo, revision, repo, f"{repo}/config.json"

    def fetch(self, name: str, key: str) -> Path:
        path = self._download(name)
        if path is None:
            raise CheckpointError(
                f"{self.repo} has no file {name} (config key {key}): is it the right repository?"
            )
        return path

    def config(self) -> dict[str, Any]:
        path = self._download("config.json")
        if path is None:
            logger.warning("%s has no config.json: taken for a Moshi 7B", self.repo)
            return {}
        return _read_json(path)

    def voices(self) -> Path | None:
        """voices.tgz (PersonaPlex) is unpacked beside itself by `unpack_voices`; without it, no voices."""
        from engine.voices import unpack_voices

        archive = self._download("voices.tgz", optional=True)
        return None if archive is None else unpack_voices(archive)

    def _download(self, name: str, optional: bool = False) -> Path | None:
        """None where the repository has no such file, or (if optional) cannot be asked."""
        from huggingface_hub import errors, hf_hub_download

        try:
            return Path(hf_hub_download(self.repo, name, revision=self.revision))
        except errors.LocalEntryNotFoundError as error:
            if optional:
                return None
            raise CheckpointError(
                f"{self.repo}: {name} is not in the local cache and Hugging Face cannot be reached. "
                f"Where there is a network, run: hf download {self.repo}"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{self.repo} is gated: accept its licence at https://huggingface.co/{self.repo}, "
                "then run: hf auth login"
            ) from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise CheckpointError(
                f"Hugging Face has no repository {self.repo} at revision {self.revision or 'main'}, "
                "or it is private (hf auth login)"
            ) from error
        except (errors.HfHubHTTPError, OSError) as error:
            raise CheckpointError(
                f"{self.repo}: downloading {name} failed ({type(error).__name__}). Run it again, it resumes: "
                f"hf download {self.repo}"
            ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return raw
