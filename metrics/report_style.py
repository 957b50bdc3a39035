"""How the page of a report looks."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --text: #1c2330; --soft: #5b6677;
  --line: #dde2ea; --track: #edf0f5; --good: #137a43; --warn: #b3470f; --note: #fdf4e7; --note-line: #e8a24a;
  --m0: #2f5fd0; --m1: #d06a1f; --m2: #1b8a52; --m3: #8a43b5; --m4: #a3841d; --m5: #2e8ba3; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --text: #e8ecf3; --soft: #a2adbd;
  --line: #323a48; --track: #272e3a; --good: #58d68d; --warn: #f2a46f; --note: #2b2419; --note-line: #b57a2e;
  --m0: #7fa4fb; --m1: #f0a063; --m2: #5fd093; --m3: #c99bea; --m4: #dcc35f; --m5: #79c9e0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.75rem 1rem 3rem; }
header { margin: 0 .1rem 1.4rem; }
h1 { font-size: clamp(1.55rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .7rem; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.1rem 0 .3rem; overflow-wrap: anywhere; }
p { margin: 0 0 .8rem; max-width: 48rem; overflow-wrap: anywhere; }
small { color: var(--soft); font-size: .8rem; }
.names, .legend { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
.name { font-weight: 600; overflow-wrap: anywhere; }
.facts { color: var(--soft); margin: .15rem 0 0; }
.legend { font-size: .85rem; margin: 0 0 .6rem; }
.dot { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin-inline-end: .4rem;
  background: var(--c); }
.dot.dashed { height: 0; width: 1.2rem; border-radius: 0; border-top: 2px dashed var(--c); background: none;
  vertical-align: .25rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.1rem 1.2rem;
  margin: 0 0 1.2rem; }
.policy { color: var(--soft); font-size: .8rem; line-height: 1.45; margin: .8rem 0 0; max-width: 54rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 0 0 1rem; }
.tile { border: 1px solid var(--line); border-radius: 11px; padding: .65rem .8rem; display: flex;
  flex-direction: column; }
.tile b { font-size: 1.55rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tile span { font-size: .88rem; line-height: 1.35; }
.explained { border-inline-start: 3px solid var(--m0); padding-inline-start: .8rem; margin: 1rem 0 0; }
.words { margin: 0 0 1rem; padding-inline-start: 1.1rem; max-width: 50rem; }
.words li { margin: 0 0 .3rem; overflow-wrap: anywhere; }
.diagnoses { list-style: none; margin: 0 0 .8rem; padding: 0; max-width: 54rem; }
.diagnoses li { background: var(--note); border-inline-start: 3px solid var(--note-line); border-radius: 6px;
  padding: .6rem .85rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.tag { font-size: .75rem; color: var(--soft); border: 1px solid var(--line); border-radius: 5px; padding: 0 .3rem; }
.m0 { --c: var(--m0); } .m1 { --c: var(--m1); } .m2 { --c: var(--m2); }
.m3 { --c: var(--m3); } .m4 { --c: var(--m4); } .m5 { --c: var(--m5); }
.bar-row { display: grid; grid-template-columns: 10.5rem minmax(0, 1fr); gap: .2rem 1rem; align-items: center;
  padding: .28rem 0; }
.line { display: grid; grid-template-columns: minmax(0, 1fr) 7.6rem; gap: .8rem; align-items: center; }
.line + .line { margin-top: .15rem; }
.track { position: relative; height: 1.05rem; background: var(--track); border-radius: 4px; }
.track i { position: absolute; top: 0; bottom: 0; }
.fill { background: var(--c); border-radius: 4px; }
.worst .fill { --c: var(--warn); }
.band { background: var(--text); opacity: .13; }
.whisker { top: 50% !important; bottom: auto !important; height: 2px; margin-top: -1px; background: var(--text); }
.whisker::before, .whisker::after { content: ""; position: absolute; top: -3px; height: 8px; width: 2px;
  background: var(--text); }
.whisker::before { left: 0; } .whisker::after { right: 0; }
.before { width: 5px; margin-left: -2px; border: 1px solid var(--text); background: var(--card); border-radius: 3px; }
.value { font-variant-numeric: tabular-nums; white-space: nowrap; }
.value b { display: inline-block; min-width: 2.7rem; text-align: end; margin-inline-end: .45rem; }
.note { font-size: .75rem; color: var(--warn); margin-inline-start: .4rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem 1.5rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: .9rem; margin: 0 0 .35rem; }
.plot { display: block; width: 100%; max-width: 36rem; height: auto; }
.plot text { fill: var(--text); font-size: 13px; text-anchor: middle; font-variant-numeric: tabular-nums; }
.plot text.end { text-anchor: end; fill: var(--soft); } .plot text.axis { fill: var(--soft); }
.plot text.small { font-size: 12px; } .plot text.first { text-anchor: start; } .plot text.last { text-anchor: end; }
.plot .grid { stroke: var(--line); stroke-width: 1; }
.plot rect, .plot circle { fill: var(--c); }
.plot polyline { fill: none; stroke: var(--c); stroke-width: 2.5; stroke-linejoin: round; }
.plot .dashed { stroke-dasharray: 5 4; } .plot circle.dashed { fill: var(--card); stroke: var(--c); stroke-width: 2;
  stroke-dasharray: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .32rem .75rem; border-bottom: 1px solid var(--line); text-align: start; vertical-align: top; }
th { font-size: .83rem; color: var(--soft); font-weight: 600; }
.number { text-align: end; white-space: nowrap; } .strong td { font-weight: 700; }
.heat { border-collapse: separate; border-spacing: 3px; font-size: .85rem; }
.heat th, .heat td { border: 0; padding: .38rem .3rem; text-align: center; min-width: 2.6rem; border-radius: 5px; }
.heat .none { color: var(--soft); background: var(--track); } .heat thead td { min-width: 0; }
.heat .deep { color: #fff; } .heat th[scope=row] { text-align: end; }
details { margin-top: .9rem; } summary { cursor: pointer; color: var(--soft); font-size: .88rem; }
.item { display: grid; grid-template-columns: 10rem minmax(0, 1fr); gap: .6rem 1.4rem; padding: 1.1rem 0;
  border-top: 1px solid var(--line); }
.what small { display: block; } .what b { overflow-wrap: anywhere; }
.photo, .tiny { background: var(--track) center / cover no-repeat; display: block; border-radius: 8px;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.photo { width: 100%; aspect-ratio: 1; background-size: contain; margin: 0 0 .4rem; }
.missing { background: repeating-linear-gradient(45deg, var(--track) 0 6px, var(--line) 6px 7px); }
.ask { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 1rem; align-items: center;
  padding: .35rem 0; }
.ask + .ask { border-top: 1px dotted var(--line); }
.who { font-size: .83rem; color: var(--soft); }
.place { margin-inline-start: .5rem; color: var(--warn); font-weight: 600; font-variant-numeric: tabular-nums; }
.place.first { color: var(--good); }
.caption { grid-column: 1; margin: 0; line-height: 1.4; }
.found { grid-column: 2; grid-row: 1 / span 2; display: flex; gap: .25rem; }
.tiny { width: 3.4rem; height: 3.4rem; border-radius: 6px; border: 2px solid transparent; }
.tiny.right { border-color: var(--good); box-shadow: 0 0 0 1px var(--good); }
@media (max-width: 46rem) {
  .card { padding: .9rem .9rem; }
  .bar-row { grid-template-columns: minmax(0, 1fr); padding: .35rem 0; }
  .line { grid-template-columns: minmax(0, 1fr) 3rem; } .value small { display: none; }
  .item { grid-template-columns: minmax(0, 1fr); }
  .what { display: grid; grid-template-columns: 6.5rem minmax(0, 1fr); gap: .8rem; align-items: center; }
  .ask { grid-template-columns: minmax(0, 1fr); } .found { grid-column: 1; grid-row: auto; margin-top: .35rem; }
  .tiny { flex: 1 1 0; min-width: 0; width: auto; aspect-ratio: 1; height: auto; max-width: 4.2rem; }
}
"""
