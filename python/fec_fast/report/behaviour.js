"use strict";
const root = document.documentElement;
const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
const toggle = document.getElementById("theme");
const nameToggle = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
toggle.hidden = false;
toggle.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameToggle(); });
nameToggle();

const order = document.getElementById("order");
if (order) {
  const rows = [...document.querySelectorAll(".layers tbody tr")];
  const body = rows.length ? rows[0].parentNode : null;
  const lost = (row) => Number(row.dataset.rank);
  order.hidden = false;
  order.addEventListener("click", () => {
    const byLoss = order.getAttribute("aria-pressed") !== "true";
    order.setAttribute("aria-pressed", String(byLoss));
    order.textContent = byLoss ? "In the order of the network" : "Largest loss first";
    body.append(...(byLoss ? [...rows].sort((a, b) => lost(b) - lost(a)) : rows));
  });
}

for (const choice of document.querySelectorAll("select[data-for]")) {
  const panels = [...document.querySelectorAll(`[data-panel="${choice.dataset.for}"]`)];
  const show = () => panels.forEach((panel, number) => { panel.hidden = number !== choice.selectedIndex; });
  choice.closest(".choice").hidden = false;
  choice.addEventListener("change", show);
  show();
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
