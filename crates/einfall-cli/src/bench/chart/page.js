// Shows the times at the k under the pointer or the keyboard's focus. Text only: nothing of the data becomes markup.
(() => {
  const tip = document.getElementById("tip");
  let guide = null;
  const hide = () => {
    tip.hidden = true;
    if (guide) guide.remove();
    guide = null;
  };
  const show = (strip, x, y) => {
    hide();
    tip.textContent = strip.dataset.tip;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    const right = x + 16 + box.width > innerWidth ? x - 16 - box.width : x + 16;
    tip.style.left = Math.max(4, right) + "px";
    tip.style.top = Math.max(4, Math.min(y + 12, innerHeight - box.height - 4)) + "px";
    if (!strip.dataset.x) return;
    guide = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const top = Number(strip.getAttribute("y"));
    guide.setAttribute("d", `M${strip.dataset.x},${top}v${strip.getAttribute("height")}`);
    guide.setAttribute("class", "axis");
    guide.setAttribute("stroke", "#555555");
    guide.setAttribute("stroke-dasharray", "2 2");
    strip.before(guide);
  };
  for (const strip of document.querySelectorAll(".strip")) {
    strip.addEventListener("pointermove", (event) => show(strip, event.clientX, event.clientY));
    strip.addEventListener("pointerleave", hide);
    strip.addEventListener("focus", () => {
      const box = strip.getBoundingClientRect();
      show(strip, box.left + box.width / 2, box.top + box.height / 3);
    });
    strip.addEventListener("blur", hide);
  }
  addEventListener("keydown", (event) => event.key === "Escape" && hide());
})();
