"""The style sheet of the report."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --paper: #fbfbfa; --card: #ffffff; --ink: #1d2430; --muted: #667085;
  --rule: #e4e6ea; --accent: #2563c9; --good: #1a7f4b; --bad: #b4413c; --shade: #f3f4f6;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --card: #1b1f26; --ink: #e6e9ef;
  --muted: #98a2b3; --rule: #2e343e; --accent: #7aa7f7; --good: #5cc48d; --bad: #ec8a84; --shade: #232831; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 var(--sans); }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
h2 { font-size: 17px; margin: 40px 0 12px; }
p { max-width: 72ch; }
.subtitle { color: var(--muted); margin: 0 0 24px; } .caption { color: var(--muted); margin: 8px 2px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin: 24px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile .label { color: var(--muted); font-size: 13px; }
.tile .value { font-size: 26px; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tile .detail { color: var(--muted); font-size: 13px; font-variant-numeric: tabular-nums; }
.card { padding: 14px; overflow-x: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 12px; }
.curves .card { padding: 10px 12px 6px; }
.curves svg { display: block; width: 100%; height: auto; }
.curves svg text { font-family: var(--sans); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--muted); font-weight: 550; font-size: 13px; }
th, td { padding: 6px 12px 6px 4px; border-bottom: 1px solid var(--rule); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
.results th, .results td { white-space: nowrap; }
.results td.wrap { white-space: normal; min-width: 9em; }
.results td:first-child { white-space: normal; min-width: 5em; }
td.number, th.number { text-align: right; }
.interval { color: var(--muted); }
.bar { display: block; position: relative; min-width: 110px; height: 10px; margin: 7px 0; border-radius: 5px;
  background: var(--shade); }
.bar i { position: absolute; top: 0; bottom: 0; border-radius: 5px; background: var(--accent);
  opacity: 0.28; }
.bar b { position: absolute; top: -2px; bottom: -2px; width: 3px; margin-left: -1.5px; border-radius: 2px;
  background: var(--accent); }
.yes { color: var(--good); } .no { color: var(--bad); }
video, img.video { display: block; max-width: 100%; max-height: 640px; margin: 0 auto; border-radius: 6px;
  background: #000; }
pre { margin: 0; font: 13px/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
a { color: var(--accent); }
details { margin: 12px 0; } details .curves { margin-top: 12px; } summary { cursor: pointer; color: var(--accent); }
details > .card { margin-top: 8px; max-height: 480px; overflow-y: auto; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 12px;
  align-items: start; }
td.key { color: var(--muted); font-size: 14px; width: 42%; }
td.mono { font: 13px/1.7 var(--mono); overflow-wrap: anywhere; }
@media print { .card, .tile { break-inside: avoid; } }
"""
