"""The style sheet of the HTML report: one for light and dark, wide and narrow."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --ink: #1c2330; --soft: #5b6678; --rule: #dde2ea;
  --host: #eef2f8; --host-edge: #b9c4d6; --inner: #fff;
  --error: #c62828; --warning: #a85b00; --note: #2f5fa8; --ok: #1b7a43;
  --error-back: #fdecec; --warning-back: #fff3e0; --note-back: #eaf1fb; --ok-back: #e6f5ec;
  --pns: #2563c9; --pac: #c2570c; --control: #5b6678; --gre: #2563c9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161d; --card: #1b212b; --ink: #e6eaf1; --soft: #9aa6b8; --rule: #303948;
    --host: #232b38; --host-edge: #46536a; --inner: #1b212b;
    --error: #ff7b72; --warning: #f0a54a; --note: #79aef5; --ok: #5fcf8d;
    --error-back: #3a1d1f; --warning-back: #38290f; --note-back: #1b2a42; --ok-back: #15321f;
    --pns: #6aa5ff; --pac: #f0934a; --control: #9aa6b8; --gre: #6aa5ff;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 28px 0 12px; }
h3 { font-size: 1rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h4 { font-size: .8rem; margin: 20px 0 8px; color: var(--soft); text-transform: uppercase;
     letter-spacing: .06em; }
p { margin: 0 0 8px; }
code { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.soft { color: var(--soft); font-size: .875rem; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
        padding: 16px; margin: 0 0 16px; min-width: 0; overflow-wrap: anywhere; }
.verdict { display: flex; flex-wrap: wrap; gap: 8px; margin: 16px 0; padding: 0; list-style: none; }
.verdict li { border-radius: 999px; padding: 4px 14px; font-weight: 600; font-size: .9rem; }
.error { --tone: var(--error); --tone-back: var(--error-back); }
.warning { --tone: var(--warning); --tone-back: var(--warning-back); }
.note { --tone: var(--note); --tone-back: var(--note-back); }
.ok { --tone: var(--ok); --tone-back: var(--ok-back); }
.verdict li, .badge { color: var(--tone); background: var(--tone-back); }
.badge { border-radius: 4px; padding: 1px 8px; font-size: .75rem; font-weight: 700;
         text-transform: uppercase; letter-spacing: .04em; }
.diagnosis { border-left: 4px solid var(--tone); }
.diagnosis .what { font-weight: 600; margin: 8px 0; }
.diagnosis .slug { margin-left: 8px; color: var(--soft); }
.evidence { display: flex; flex-wrap: wrap; gap: 6px; list-style: none; padding: 0;
            margin: 8px 0 0; }
.evidence li { font-size: .8rem; color: var(--soft); border: 1px solid var(--rule);
               border-radius: 4px; padding: 0 6px; }
.over { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); align-items: start; }
.facts { display: grid; grid-template-columns: minmax(96px, max-content) minmax(0, 1fr);
         gap: 4px 16px; margin: 8px 0 0; font-size: .9rem; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.columns { display: grid; gap: 8px 24px; grid-template-columns: minmax(0, 1fr); }
.plots { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr); }
.legend { display: flex; gap: 16px; font-size: .8rem; color: var(--soft); margin: 0 0 8px; }
.legend span::before { content: ""; display: inline-block; width: 14px; height: 3px;
  border-radius: 2px; background: var(--key); vertical-align: middle; margin-right: 6px; }
.legend .pns { --key: var(--pns); } .legend .pac { --key: var(--pac); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--rule);
         vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; overflow-wrap: normal; }
tr:last-child td { border-bottom: 0; }
.phases { display: flex; flex-wrap: wrap; gap: 4px 6px; list-style: none; margin: 0; padding: 0; }
.phases li::after { content: " \\2192"; color: var(--soft); }
.phases li:last-child::after { content: ""; }
footer { margin-top: 40px; color: var(--soft); font-size: .8rem; }
@media (max-width: 480px) {
  main { padding: 16px 10px 32px; } .card { padding: 12px; } h1 { font-size: 1.25rem; }
}
@media (min-width: 860px) {
  .over { grid-template-columns: minmax(0, 1.1fr) minmax(0, 1fr); }
  .columns { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .plots { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
svg.picture { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto; }
svg.plot { max-width: none; }
svg text { font: 10px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
           fill: var(--ink); }
svg .tick { fill: var(--soft); font-size: 9px; }
svg .tiny { font-size: 8.5px; fill: var(--soft); }
svg .role { font-size: 8px; fill: var(--soft); text-transform: uppercase; letter-spacing: .5px; }
svg .name, svg .head, svg .plot-title { font-weight: 600; }
svg .strong { font-weight: 600; fill: var(--ink); }
svg .bad, svg .broken-word { fill: var(--error); font-weight: 600; }
svg .host { fill: var(--host); stroke: var(--host-edge); }
svg .inner, svg .box { fill: var(--inner); stroke: var(--host-edge); }
svg .interface .box { stroke: var(--pac); }
svg .socket .box { stroke: var(--pns); }
svg .broken .box { stroke: var(--error); stroke-width: 2; }
svg .broken text { fill: var(--error); }
svg path, svg line { fill: none; stroke-linecap: round; stroke-linejoin: round; }
svg .data, svg .shaft, svg .tip, svg .cross { stroke: var(--soft); stroke-width: 1.25; }
svg .control .shaft, svg .control .tip { stroke: var(--control); }
svg .gre .shaft, svg .gre .tip { stroke: var(--gre); stroke-width: 1.75; }
svg .missing .shaft, svg .flow.broken .shaft { stroke: var(--error); stroke-dasharray: 3 3; }
svg .missing .cross { stroke: var(--error); stroke-width: 2; }
svg .missing text { fill: var(--error); }
svg .data.broken { stroke: var(--error); stroke-width: 2; stroke-dasharray: 3 3; }
svg .data.loop { stroke-dasharray: none; stroke-width: 2.5; }
svg .life { stroke: var(--host-edge); stroke-width: 1.5; }
svg .life.nat { stroke-dasharray: 2 4; }
svg.ladder text { paint-order: stroke; stroke: var(--card); stroke-width: 3px;
                  stroke-linejoin: round; }
svg .rung path { stroke: var(--control); stroke-width: 1.25; }
svg .rung.ppp path { stroke: var(--pns); } svg .rung.data path { stroke: var(--gre); }
svg .rung.tcp text:not(.tick) { fill: var(--soft); }
svg .rung.bad path { stroke: var(--error); stroke-width: 2; }
svg .rung.bad text:not(.tick) { fill: var(--error); font-weight: 600; }
svg .remark, svg .pause { fill: var(--soft); font-style: italic; font-size: 9px; }
svg .grid { stroke: var(--rule); }
svg .limit { stroke: var(--error); stroke-dasharray: 4 3; }
svg .limit-name { fill: var(--error); }
svg .curve { stroke-width: 1.75; } svg .curve.pns { stroke: var(--pns); }
svg .curve.pac { stroke: var(--pac); }
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
