"""Asks a server after its health, in a process of its own: what it waits for is the server, not its caller's work.

A line on standard input begins a watch, the next one ends it. After the first answer it says "watching", after the last
one what was seen, as JSON: each answer's time, each pause's, and the answers that were no 200.
"""

import asyncio
import json
import sys
import time

import httpx

# Between two questions.
PAUSE_SECONDS = 0.02


async def watch(url: str, patience_seconds: float) -> None:
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with httpx.AsyncClient(base_url=url, timeout=patience_seconds) as client:
        while await lines.readline():
            over = asyncio.ensure_future(lines.readline())
            seen = {"seconds": [], "pauses": [], "faults": []}
            while not over.done():
                begun = time.monotonic()
                try:
                    reply = await client.get("/health")
                    fault = "" if reply.status_code == 200 else reply.text
                except httpx.HTTPError as error:
                    fault = repr(error)
                answered = time.monotonic()
                if not seen["seconds"]:
                    print("watching", flush=True)
                seen["seconds"].append(answered - begun)
                seen["faults"] += [fault] if fault else []
                await asyncio.wait([over], timeout=PAUSE_SECONDS)
                seen["pauses"].append(time.monotonic() - answered)
            print(json.dumps(seen), flush=True)


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], float(sys.argv[2])))
