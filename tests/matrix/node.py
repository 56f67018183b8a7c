"""The JavaScript SDKs, run by node. They are installed once, beside the other things that tests fetch."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from llama import cache_folder

JS = Path(__file__).parent / "js"


@functools.cache
def installed() -> Path:
    """The folder with the script and its packages. Skips the test where node or the packages cannot be had."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    packages = (JS / "package.json").read_bytes()
    folder = cache_folder() / f"js-{hashlib.blake2b(packages, digest_size=6).hexdigest()}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "node_modules" / ".package-lock.json").exists():
            (folder / "package.json").write_bytes(packages)
            command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode != 0:
                pytest.skip(f"npm could not install the SDKs: {done.stderr[-500:]}")
        shutil.copy(JS / "client.mjs", folder / "client.mjs")
    return folder


async def ask(client: str, url: str, *wishes: dict[str, Any]) -> list[Any]:
    """What these wishes come to, one after the other."""
    folder = await asyncio.to_thread(installed)
    process = await asyncio.create_subprocess_exec(
        "node", "client.mjs", client, url, json.dumps(wishes), cwd=folder, stdout=-1, stderr=-1
    )
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    found: list[Any] = json.loads(out)
    return found
