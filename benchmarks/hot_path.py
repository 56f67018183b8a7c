"""(b) A small chat through the router and through the bare relay, in turns: CPU per request, and time added.

python benchmarks/hot_path.py
"""

import sys

from rig import ask_for, bare_relay, cpu, median, router, show, stub_config, stub_engine

ROUNDS, SECONDS = 7, 3.0


def costs(port: int, child, connections: int) -> tuple[float, float, list[float]]:
    """Microseconds of CPU per request (all, user only), and every answer's seconds."""
    user, system = cpu(child)
    taken = ask_for(port, SECONDS, connections)
    user_after, system_after = cpu(child)
    each = 1e6 / len(taken)
    return (user_after - user + system_after - system) * each, (user_after - user) * each, taken


def main() -> int:
    ok = True
    with stub_engine() as engine, bare_relay(engine) as (relay_port, relay), router(stub_config()) as (port, child):
        ask_for(port, 1.0, 1)
        ask_for(relay_port, 1.0, 1)
        rows = []
        for _ in range(ROUNDS):
            relay_cpu, relay_user, _ = costs(relay_port, relay, 8)
            our_cpu, our_user, _ = costs(port, child, 8)
            direct = median(ask_for(engine, 1.0, 1))
            relay_p50 = median(ask_for(relay_port, SECONDS / 2, 1)) - direct
            our_p50 = median(ask_for(port, SECONDS / 2, 1)) - direct
            rows.append((our_cpu, relay_cpu, our_user, relay_user, our_p50, relay_p50))
            print(
                f"  CPU {our_cpu:5.0f} / {relay_cpu:5.0f} µs, user {our_user:5.0f} / {relay_user:5.0f} µs, "
                f"p50 added {our_p50 * 1e6:5.0f} / {relay_p50 * 1e6:5.0f} µs (ours / relay)"
            )
        ok &= show("CPU per request, whole", median(r[0] / r[1] for r in rows), 1.4)
        ok &= show("CPU per request, user only", median(r[2] / r[3] for r in rows), 1.4)
        ok &= show("p50 added", median(r[4] / r[5] for r in rows), 1.6)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
