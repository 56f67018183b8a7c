"""A router reduced to one engine: starts it, says `ready PID PORT`, and waits to be killed.

Arguments: base folder, base URL or `-`, then the command of the engine.
"""

import asyncio
import sys
from pathlib import Path

from enginerouter.config.engines import GenericProcess
from enginerouter.engines.directory import SlotDirectory
from enginerouter.engines.process import GenericProcessEngine
from enginerouter.slots import SlotId
from enginerouter.state import StateFile


async def main() -> None:
    base, url, *command = sys.argv[1:]
    state = StateFile(Path(base) / "state.json")
    settings = GenericProcess(name="llama", start_cmd=tuple(command), base_url=None if url == "-" else url)
    engine = GenericProcessEngine(settings, Path(base), state, SlotDirectory(state.router_id))
    slot = SlotId("llama")
    await engine.start(slot)
    await state.flush()
    print("ready", engine.pid(slot), engine.address(slot).rpartition(":")[2], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await engine.stop(slot)
    await engine.close()
    await state.close()
    print("stopped", flush=True)


asyncio.run(main())
