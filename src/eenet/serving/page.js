"use strict";
// Asks for one JSON every second, shows it, and sends the budget where the slider was moved to.
const PERIOD = 1000;
const slider = document.getElementById("slider");
let token = "", costs = null, unit = "", before = null, moved = 0, name = "";

const at = (id) => document.getElementById(id);
const show = (id, text) => { const one = at(id); if (one.textContent !== text) one.textContent = text; };
const number = (value, digits = 4) => value === null || value === undefined ? "-" : String(Number(value.toPrecision(digits)));
const withUnit = (value, of) => value === null || value === undefined ? "-" : `${number(value)} ${of || ""}`.trim();
const percent = (value) => value === null || value === undefined ? "-" : `${(100 * value).toFixed(1)} %`;

// the slider moves in equal ratios, from what exit 0 costs to what the last exit costs
const costAt = (place) => costs.low * Math.pow(costs.high / costs.low, place / 100);
const placeOf = (cost) => Math.round(100 * Math.log(cost / costs.low) / Math.log(costs.high / costs.low));

async function ask(path, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  at("door").hidden = answer.status !== 401;
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || answer.statusText);
  return found;
}

function showExits(now) {
  const body = at("exits"), total = now.exits.reduce((a, b) => a + b, 0);
  while (body.rows.length < now.exits.length) {
    const row = body.insertRow();
    for (let k = 0; k < 6; k++) row.insertCell();
    const bar = document.createElement("span");
    bar.className = "bar";
    row.cells[2].className = "wide";
    row.cells[2].append(bar);
  }
  now.exits.forEach((count, k) => {
    const cells = body.rows[k].cells, share = total ? count / total : 0;
    const texts = [k, percent(share), null, now.waiting[k], number(now.mean_batch[k], 3), number(now.mean_score[k], 3)];
    texts.forEach((text, i) => { if (text !== null && cells[i].textContent !== String(text)) cells[i].textContent = text; });
    cells[2].firstChild.style.width = `${100 * share}%`;
  });
}

function showDial(now) {
  costs = now.costs;
  at("dial").hidden = costs === null;
  if (costs === null || Date.now() - moved < 2 * PERIOD) return;
  const cost = now.budget === null ? now.in_force : now.budget.value;
  if (cost === null) { show("asked", "that of the policy"); return; }
  slider.value = Math.min(100, Math.max(0, placeOf(cost)));
  showAsked(cost);
}

function showAsked(cost) {
  const text = `${withUnit(cost, unit)}, ${percent(cost / costs.full)} of the full model`;
  show("asked", text);
  slider.setAttribute("aria-valuetext", text);
}

function showNumbers(now) {
  name = now.model; unit = now.unit;
  show("model", now.model);
  show("state", now.ready ? "ready" : "not ready");
  at("state").classList.toggle("ready", now.ready);
  for (const id of ["requests", "samples", "failures", "refused"]) show(id, String(now[id]));
  for (const id of ["recent_cost", "in_force", "mean_cost"]) show(id, withUnit(now[id], unit));
  for (const id of ["recent_p99_ms", "slo_ms"]) show(id, withUnit(now[id], "ms"));
  show("latency", `${withUnit(now.latency_ms.p50, "ms")}, ${withUnit(now.latency_ms.p99, "ms")}`);
  show("agreement", now.agreement === null ? "-" :
    `${percent(now.agreement)} of ${now.shadows}` + (now.promised_agreement === null ? "" : `, promised ${percent(now.promised_agreement)}`));
  show("turns", now.turns.join(", "));
  const time = Date.now();
  if (before !== null) show("rate", number(Math.max(0, 1000 * (now.samples - before.samples) / (time - before.time)), 3));
  before = { samples: now.samples, time };
  at("alarms").replaceChildren(...now.alarms.map((one) => Object.assign(document.createElement("li"), { textContent: one.evidence })));
  showDial(now);
  showExits(now);
}

async function turn() {
  const address = `/v2/models/${encodeURIComponent(name)}/budget`;
  try {
    await ask(address, { method: "PUT", body: JSON.stringify({ budget: costAt(slider.value) }) });
    show("said", "");
  } catch (error) { show("said", error.message); }
}

async function watch() {
  try { showNumbers(await ask("/numbers")); }
  catch (error) { show("state", error instanceof TypeError ? "not reached" : error.message); at("state").classList.remove("ready"); }
  setTimeout(watch, PERIOD);
}

slider.addEventListener("input", () => { moved = Date.now(); showAsked(costAt(slider.value)); });
slider.addEventListener("change", () => { moved = Date.now(); turn(); });
at("door").addEventListener("submit", (event) => { event.preventDefault(); token = at("token").value; at("door").hidden = true; });
watch();
