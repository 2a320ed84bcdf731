"use strict";
// Every state of the page was worked out beforehand: moving a slider only shows another one.
document.documentElement.classList.add("js");

function all(kind, index) {
  return document.querySelectorAll(`[data-${kind}^="${index}:"]`);
}

function show(slider) {
  const index = slider.dataset.turn;
  const states = slider.states;
  const state = states[slider.value];
  const key = (node, kind) => node.dataset[kind].slice(index.length + 1);
  for (const node of all("text", index)) node.textContent = state.text[key(node, "text")] ?? "";
  for (const node of all("draw", index)) {
    for (const [name, value] of Object.entries(state.draw[key(node, "draw")] ?? {})) node.setAttribute(name, value);
  }
  for (const node of all("if", index)) node.hidden = !state.text[key(node, "if")];
  for (const node of all("exits", index)) {
    const exit = key(node, "exits").split(",")[slider.value];
    document.querySelector(`[data-left="${index}:${exit}"]`)?.append(node);
  }
  slider.setAttribute("aria-valuetext", `${state.text.budget}. ${state.text.now}`);
}

for (const slider of document.querySelectorAll("input[data-turn]")) {
  slider.states = JSON.parse(document.getElementById(`states-${slider.dataset.turn}`).textContent);
  slider.addEventListener("input", () => show(slider));
  for (const button of document.querySelectorAll(`button[data-step^="${slider.dataset.turn}:"]`)) {
    button.addEventListener("click", () => {
      slider.value = Number(slider.value) + Number(button.dataset.step.split(":")[1]);
      show(slider);
    });
  }
  show(slider);  // browsers restore where a slider was
}

for (const box of document.querySelectorAll("input[data-curve]")) {
  const curve = document.getElementById(box.dataset.curve);
  const draw = () => curve.classList.toggle("off", !box.checked);
  box.addEventListener("change", draw);
  draw();
}
