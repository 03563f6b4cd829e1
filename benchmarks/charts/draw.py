"""Draw a chart of requests from the facts on stdin: `draw.py FILE`. Runs in an environment with matplotlib."""

import json
import sys

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

facts = json.load(sys.stdin)
bars = sorted(facts["bars"], key=lambda bar: bar["server"] + bar["database"], reverse=True)
titles = [bar["title"] for bar in bars]
figure, (cpu, rate, latency) = plt.subplots(1, 3, figsize=(15, 1.4 + 0.45 * len(bars)), sharey=True)
cpu.barh(titles, [bar["server"] for bar in bars], color="#4477aa", label="server")
cpu.barh(
    titles, [bar["database"] for bar in bars], left=[bar["server"] for bar in bars], color="#ccbb44", label="PostgreSQL"
)
for place, bar in enumerate(bars):
    cpu.text(bar["server"] + bar["database"], place, f" {bar['server'] + bar['database']:.0f}", va="center")
cpu.margins(x=0.15)
cpu.set_title("CPU microseconds per request")
cpu.legend(loc="upper right")
rate.barh(titles, [bar["rate"] for bar in bars], color="#228833")
rate.set_title("requests per second")
latency.barh(titles, [bar["p99"] for bar in bars], color="#ee6677", label="p99")
latency.barh(titles, [bar["p50"] for bar in bars], color="#aa3377", label="p50")
latency.set_title("milliseconds until the answer")
latency.legend(loc="upper right")
figure.suptitle(facts["title"], fontsize=9)
figure.tight_layout()
figure.savefig(sys.argv[1], dpi=110)
