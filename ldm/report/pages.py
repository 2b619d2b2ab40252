"""HTML of the reports: jinja templates as text, so that a page needs no file beside it."""

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6570; --line: #d9dee3; --card: #fff;
  --page: #f5f6f8; --accent: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #9aa4af; --line: #343b44;
  --card: #1d2127; --page: #14171b; --accent: #7aa7f5; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.2rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 0 0 .8rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.1rem 0 .4rem; }
p { margin: .3rem 0 .8rem; } .soft, figcaption { color: var(--soft); font-size: .85rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.1rem 1.3rem; margin-top: 1.1rem; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, monospace; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .6rem;
  margin: 1rem 0 0; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .5rem .8rem; overflow-wrap: anywhere; }
.cards dt { color: var(--soft); font-size: .8rem; } .cards dd { margin: 0; font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; }
@media (max-width: 520px) { .row figure { max-width: calc(50% - .3rem); } }
.strip { display: flex; flex-wrap: wrap; gap: .8rem; }
.strip figure { max-width: 100%; }
figure { margin: 0; } figcaption { text-align: center; }
img { display: block; max-width: 100%; height: auto; border-radius: 6px; image-rendering: auto;
  background: var(--page); outline: 1px solid var(--line); outline-offset: -1px; }
.missing { display: grid; place-items: center; width: 160px; height: 100px; border-radius: 6px;
  border: 1px dashed var(--line); color: var(--soft); font-size: .8rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
.chart { width: 100%; height: auto; } .chart text { fill: var(--soft); font-size: 11px; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart polyline { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
.chart circle { fill: var(--accent); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; font-size: .85rem; color: var(--soft); }
td.number { text-align: right; } th.number { text-align: right; }
tr:last-child td { border-bottom: 0; } summary { cursor: pointer; color: var(--soft); }
footer { margin-top: 1.5rem; }
"""

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>"""

_BODY = """</style>
</head>
<body><main>
{% macro picture(item, caption="") -%}
<figure>{% if item.uri %}<img src="{{ item.uri }}" width="{{ item.width }}"
 height="{{ item.height }}" alt="{{ caption or item.name }}" loading="lazy">
{%- else %}<div class="missing">{{ item.name }} is missing</div>{% endif %}
{%- if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}</figure>
{%- endmacro %}
{% macro pairs(rows) -%}
<div class="scroll"><table>{% for name, value in rows %}
<tr><td class="soft">{{ name }}</td><td>{{ value }}</td></tr>{% endfor %}
</table></div>
{%- endmacro %}
<h1>{{ report.title }}</h1>
{% block lead %}{% endblock %}
{% if summary %}<dl class="cards">{% for name, value in summary %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>{% endif %}
{% block body %}{% endblock %}
{% if manifest %}<section><h2>How to make this again</h2>
<details><summary>manifest: versions, seed, hashes, commands</summary>
{{ pairs(manifest) }}</details></section>{% endif %}
</main></body>
</html>
"""

BASE = _HEAD + STYLE + _BODY

INVERSION = """{% extends "base" %}
{% block lead %}<p>The word{{ "" if report.placeholders|length == 1 else "s" }}
{% for word in report.placeholders %}<code>{{ word }}</code>{{ " and " if not loop.last }}
{%- endfor %}, learned from
{{ training|length }} picture{{ "" if training|length == 1 else "s" }}.</p>{% endblock %}
{% block body %}
<section><h2>Training pictures</h2>
<div class="row">{% for item in training %}{{ picture(item) }}{% endfor %}</div>
{% if cut_outs %}<p class="soft">What counts of them, by their masks; the rest is left to the model.</p>
<div class="row">{% for word, item in cut_outs %}{{ picture(item, word) }}{% endfor %}</div>{% endif %}
</section>
<section><h2>What the word draws now</h2>
{% for prompt, items in prompts %}<h3>{{ prompt }}</h3>
<div class="row">{% for item in items %}{{ picture(item) }}{% endfor %}</div>
{% else %}<p class="soft">No pictures were drawn.</p>{% endfor %}</section>
{% if steps %}<section><h2>As training went</h2>
<p class="soft">The same prompts and the same noise, after each number of steps.</p>
<div class="strip">{% for step, items in steps %}<figure>
{% for item in items %}{{ picture(item) }}{% endfor %}
<figcaption>step {{ step }}</figcaption></figure>{% endfor %}</div></section>{% endif %}
{% if metrics %}<section><h2>Measures</h2>{{ pairs(metrics) }}</section>{% endif %}
{% if curves %}<section><h2>Curves</h2><div class="charts">
{% for name, chart in curves %}<div><h3>{{ name }}</h3>{{ chart }}</div>{% endfor %}
</div></section>{% endif %}
{% if words %}<section><h2>Nearest words of the vocabulary</h2>
<p class="soft">By cosine between the learned vector and the word's own.</p>
<div class="scroll"><table>{% for vector, row in words %}
<tr><td class="soft">{{ vector }}</td><td>{% for word, cosine in row %}
<code>{{ word }}</code>&nbsp;<span class="soft">{{ cosine }}</span>{{ ", " if not loop.last }}
{%- endfor %}</td></tr>{% endfor %}</table></div></section>{% endif %}
{% endblock %}
"""

EVALUATION = """{% extends "base" %}
{% block lead %}{% for note in report.notes %}<p>{{ note }}</p>{% endfor %}{% endblock %}
{% block body %}
{% if report.charts %}<section><h2>Curves</h2><div class="charts">
{% for name, chart in report.charts.items() %}<div><h3>{{ name }}</h3>{{ chart }}</div>{% endfor %}
</div></section>{% endif %}
{% for table in tables %}<section><h2>{{ table.title }}</h2>
{% if table.note %}<p class="soft">{{ table.note }}</p>{% endif %}
<div class="scroll"><table><tr>{% for name in table.columns %}
<th{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ name }}</th>{% endfor %}</tr>
{% for row in table.rows %}<tr>{% for value in row %}
<td{% if table.numeric[loop.index0] %} class="number"{% endif %}>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div></section>{% endfor %}
{% for title, item in sheets %}<section><h2>{{ title }}</h2>
<div class="scroll">{{ picture(item) }}</div></section>{% endfor %}
{% endblock %}
"""

RUNS = """{% extends "base" %}
{% block lead %}<p class="soft">Click a column's head to sort by it. The curve is the loss on the fixed batch,
the picture the newest samples; settings are columns where runs differ in them.</p>
{% if report.refresh %}<meta http-equiv="refresh" content="{{ report.refresh }}">{% endif %}
<style>main { max-width: 1600px; } th button { all: unset; cursor: pointer; } th[aria-sort] button::after {
content: " \\25B2"; } th[aria-sort="descending"] button::after { content: " \\25BC"; }
.running { color: var(--accent); font-weight: 600; } .stopped { color: var(--soft); }
td .chart { min-width: 220px; max-width: 260px; } 
td img { max-height: 110px; width: auto; }</style>{% endblock %}
{% block body %}<section><div class="scroll"><table id="runs"><thead><tr>
{% for name in head %}<th><button>{{ name }}</button></th>{% endfor %}<th>curve</th>
<th>samples</th></tr></thead><tbody>
{% for row in rows %}<tr>{% for text, value in row.cells %}<td data-value="{{ value }}"
{%- if loop.index0 == 2 %} class="{{ row.state }}"{% endif %}>
{%- if loop.first and row.link %}<a href="{{ row.link }}">{{ text }}</a>
{%- else %}{{ text }}{% endif %}</td>{% endfor %}
<td>{{ row.chart }}</td><td>{% if row.picture and row.picture.uri %}<img src="{{ row.picture.uri }}"
 alt="newest samples" loading="lazy">{% endif %}</td></tr>{% endfor %}
</tbody></table></div>{% if not rows %}<p class="soft">No runs yet.</p>{% endif %}</section>
<script>
document.querySelectorAll("#runs th button").forEach((button, column) => {
 button.addEventListener("click", () => {
  const head = button.parentElement, body = document.querySelector("#runs tbody");
  const down = head.getAttribute("aria-sort") === "ascending";
  document.querySelectorAll("#runs th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.children[column].dataset.value;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)], numbers = x !== "" && y !== "" && !isNaN(x) && !isNaN(y);
    const order = numbers ? x - y : x.localeCompare(y, undefined, { numeric: true });
    return down ? -order : order;
  });
  body.append(...rows);
 })});
</script>{% endblock %}
"""

PAGES = {"base": BASE, "inversion": INVERSION, "evaluation": EVALUATION, "runs": RUNS}
