"""llama.cpp: what its slots have read is saved before it is freed and restored after it starts (`keep_slots`).

The server writes and reads the files, in the folder of its `--slot-save-path`. Their names carry a hash of the launch
and of its model file: what another model, or another context size, has read is never offered. All of it is a
convenience: whatever goes wrong is a warning, and takes no longer than it is given.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from enginerouter.config.check_engines import SLOT_FOLDER_FLAG
from enginerouter.engines.launch import Launch, file_name, model_paths
from enginerouter.engines.probe import Prober

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SlotFiles:
    """Where the slots of one launch are kept. `family` is the same for all launches of the slot, `key` is not."""

    folder: Path
    family: str
    key: str

    def name(self, number: int) -> str:
        return f"{self.family}{self.key}-{number}.bin"

    def number(self, name: str) -> int | None:
        """The slot number of one of our own files."""
        found = re.fullmatch(re.escape(self.family + self.key) + r"-(\d+)\.bin", name)
        return int(found[1]) if found else None

    def is_family(self, name: str) -> bool:
        return re.fullmatch(re.escape(self.family) + r"[0-9a-f]{16}-\d+\.bin", name) is not None


def slot_files(launch: Launch) -> SlotFiles | None:
    """None where the command names no folder. `launch` must be planned for port 0: a port means nothing. Blocks."""
    folder = slot_folder(launch)
    if folder is None:
        return None
    return SlotFiles(folder, f"enginerouter-{file_name(launch.slot)}-", _key(launch))


def slot_folder(launch: Launch) -> Path | None:
    for word, following in zip(launch.argv, (*launch.argv[1:], ""), strict=True):
        flag, equals, value = word.partition("=")
        if flag == SLOT_FOLDER_FLAG and (value or following):
            path = Path(value if equals else following).expanduser()
            return (launch.cwd or Path()).absolute() / path
    return None


def _key(launch: Launch) -> str:
    parts = [launch.digest]
    for path in sorted({*model_paths(launch.argv), *([str(launch.model)] if launch.model else [])}):
        try:
            info = ((launch.cwd or Path()) / Path(path).expanduser()).stat()
        except OSError:
            continue
        parts.append(f"{path} {info.st_size} {info.st_mtime_ns}")
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()[:16]


def make_folder(launch: Launch) -> str:
    """llama-server does not start without its folder. What keeps it from being made, or "". Blocks."""
    folder = slot_folder(launch)
    if folder is None:
        return ""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # conversations will lie there
    except OSError as error:
        return str(error)
    return ""


async def save(prober: Prober, address: str, files: SlotFiles, timeout_s: float) -> None:
    """Save every slot that has read something. Never raises but when cancelled."""
    try:
        async with asyncio.timeout(timeout_s):
            await _save(prober, address, files, timeout_s)
    except TimeoutError:
        log.warning("saving slots to %s was not done within %.3g s", files.folder, timeout_s)
    except OSError as error:
        log.warning("slots were not saved: %s", error)


async def _save(prober: Prober, address: str, files: SlotFiles, timeout_s: float) -> None:
    await asyncio.to_thread(_forget, files)  # what an earlier life has saved is superseded
    props = await prober.call("GET", f"{address}/props", timeout_s=timeout_s)
    if isinstance(props.document, dict) and props.document.get("is_sleeping") is True:
        return  # its context went when it fell asleep, and asking for its slots would load the model
    listed = await prober.call("GET", f"{address}/slots", timeout_s=timeout_s)
    if not listed.is_ok or not isinstance(listed.document, list):
        log.warning("slots were not saved: %s/slots answered %s", address, listed.saw)
        return
    saved = 0
    for number in [s["id"] for s in listed.document if isinstance(s, dict) and isinstance(s.get("id"), int)]:
        # All of them: one that was restored and has had no request since is not told from an empty one.
        name = files.name(number)
        reply = await prober.call(
            "POST", f"{address}/slots/{number}?action=save", {"filename": name}, timeout_s=timeout_s
        )
        tokens = reply.document.get("n_saved") if isinstance(reply.document, dict) else None
        if not reply.is_ok:
            log.warning("slot %d was not saved: %s", number, reply.saw)
        if not reply.is_ok or tokens == 0:
            await asyncio.to_thread((files.folder / name).unlink, missing_ok=True)
        else:
            saved += 1
    log.info("%d slots saved to %s", saved, files.folder)


async def restore(prober: Prober, address: str, files: SlotFiles, timeout_s: float) -> None:
    """Restore what was saved, and remove the files. Never raises but when cancelled."""
    try:
        async with asyncio.timeout(timeout_s):
            for number, name in await asyncio.to_thread(_kept, files):
                url = f"{address}/slots/{number}?action=restore"
                reply = await prober.call("POST", url, {"filename": name}, timeout_s=timeout_s)
                if reply.is_ok:
                    log.info("slot %d restored from %s", number, name)
                else:
                    log.warning("slot %d was not restored from %s: %s", number, name, reply.saw)
            await asyncio.to_thread(_forget, files)
    except TimeoutError:
        log.warning("restoring slots from %s was not done within %.3g s", files.folder, timeout_s)
    except OSError as error:
        log.warning("slots were not restored: %s", error)


def _kept(files: SlotFiles) -> list[tuple[int, str]]:
    names = [path.name for path in files.folder.iterdir()] if files.folder.is_dir() else []
    return sorted((number, name) for name in names if (number := files.number(name)) is not None)


def _forget(files: SlotFiles) -> None:
    """Remove all that was ever saved for this slot, also by launches that were configured otherwise."""
    for path in files.folder.iterdir() if files.folder.is_dir() else ():
        if files.is_family(path.name):
            path.unlink(missing_ok=True)
