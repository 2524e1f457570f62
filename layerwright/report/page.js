// Shows the number under the pointer, the finger or the arrow keys, and copies plans. The page is readable without it.
"use strict";
const tip = document.getElementById("tip");
let here = null;
let byKeys = false;

for (const title of document.querySelectorAll(".hit > title")) {
  title.parentNode.dataset.tip = title.textContent;
  title.remove(); // else the browser would show its own tip over ours
}

function show(hit, x, y) {
  if (here) here.classList.remove("here");
  here = hit;
  tip.hidden = !hit;
  if (!hit) return;
  hit.classList.add("here");
  if (tip.textContent !== hit.dataset.tip) tip.textContent = hit.dataset.tip;
  const room = tip.getBoundingClientRect();
  const left = x + 14 + room.width > innerWidth ? x - 14 - room.width : x + 14;
  const top = y - 14 - room.height < 0 ? y + 18 : y - 14 - room.height;
  tip.style.left = `${Math.max(4, Math.min(left, innerWidth - room.width - 4))}px`;
  tip.style.top = `${top}px`;
}

function middle(mark) {
  const box = mark.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
}

// The nearest mark on that side of the current one; marks off the axis of movement count as farther away.
function next(plot, [dx, dy]) {
  const hits = [...plot.querySelectorAll(".hit")];
  if (!here || !plot.contains(here)) return hits[0];
  const [x, y] = middle(here);
  let best = here, least = Infinity;
  for (const hit of hits) {
    const [u, v] = middle(hit);
    const along = (u - x) * dx + (v - y) * dy, aside = Math.abs((u - x) * dy) + Math.abs((v - y) * dx);
    if (along > 0.5 && along + 3 * aside < least) [best, least] = [hit, along + 3 * aside];
  }
  return best;
}

const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

for (const kind of ["pointermove", "pointerdown"]) {
  document.addEventListener(kind, (event) => {
    const hit = event.target.closest?.(".hit[data-tip]");
    byKeys = false;
    if (hit || kind === "pointerdown" || event.pointerType === "mouse") show(hit, event.clientX, event.clientY);
  });
}
document.addEventListener("keydown", (event) => {
  const plot = document.activeElement?.closest?.(".plot");
  if (event.key === "Escape") show(null);
  if (!plot || !arrows[event.key]) return;
  const hit = next(plot, arrows[event.key]);
  if (!hit) return;
  event.preventDefault();
  byKeys = true;
  show(hit, ...middle(hit));
});
document.addEventListener("focusout", () => show(null));
document.addEventListener("scroll", () => {
  if (byKeys && here) show(here, ...middle(here));
  else show(null);
}, { passive: true, capture: true });

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = button.closest(".plan").querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2500);
  });
}
