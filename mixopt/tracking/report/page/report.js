// What a mark says, by pointer, finger and keyboard; the colour scheme; copying a command. The page is complete without it: each figure has
// its table.
(() => {
  "use strict";
  const tip = document.getElementById("tip");
  const REACH = 16; // CSS pixels around a mark that count as pointing at it: half of what a finger covers
  let shown = null;

  function show(mark) {
    if (shown && shown !== mark) shown.classList.remove("on");
    shown = mark;
    mark.classList.add("on");
    tip.textContent = mark.dataset.tip.replaceAll("\u2028", "\n");
    tip.hidden = false;
    const box = mark.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const centre = Math.min(Math.max(box.left, 0) + Math.min(box.width, innerWidth) / 2 - size.width / 2, innerWidth - size.width - 8);
    const above = box.top - size.height - 8;
    tip.style.left = `${Math.max(8, centre)}px`;
    tip.style.top = `${above >= 4 ? above : Math.min(box.bottom + 8, innerHeight - size.height - 4)}px`;
  }
  function hide() {
    if (shown) shown.classList.remove("on");
    shown = null;
    tip.hidden = true;
  }
  // When the pointer is on nothing, what the keyboard is on goes on speaking, unless it was told to be silent.
  let silenced = null;
  function focused() {
    const here = document.activeElement;
    return here && here !== silenced && here.classList.contains("mark") ? here : null;
  }
  function rest() {
    if (focused()) show(focused());
    else hide();
  }
  // The mark under the pointer, or the nearest within reach; of several under it the smallest.
  function nearest(drawing, x, y) {
    let best = null, least = REACH, area = Infinity;
    for (const mark of drawing.querySelectorAll(".mark")) {
      const box = mark.getBoundingClientRect();
      const away = Math.hypot(Math.max(box.left - x, 0, x - box.right), Math.max(box.top - y, 0, y - box.bottom));
      const size = box.width * box.height;
      if (away < least || (away === least && away < REACH && size < area)) [best, least, area] = [mark, away, size];
    }
    return best;
  }
  // Listeners stand on the box around a drawing: a drawing that listens for focus itself becomes a stop of the Tab key (Chromium).
  for (const drawing of document.querySelectorAll("figure .wide, figure .narrow")) {
    const marks = [...drawing.querySelectorAll(".mark")].sort((one, other) => one.dataset.at - other.dataset.at);
    const point = (event) => {
      const mark = nearest(drawing, event.clientX, event.clientY);
      if (mark) show(mark);
      else rest();
    };
    drawing.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") point(event); });
    drawing.addEventListener("pointerdown", point);
    drawing.addEventListener("pointerleave", (event) => {
      if (event.pointerType !== "touch") rest();
    });
    drawing.addEventListener("focusin", (event) => {
      if (!marks.includes(event.target)) return;
      for (const mark of marks) mark.tabIndex = mark === event.target ? 0 : -1;
      silenced = null;
      show(event.target);
    });
    drawing.addEventListener("focusout", hide);
    drawing.addEventListener("keydown", (event) => {
      const at = marks.indexOf(document.activeElement), last = marks.length - 1;
      const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
      if (to === undefined || at < 0) return;
      event.preventDefault();
      marks[Math.min(Math.max(to, 0), last)].focus();
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    silenced = document.activeElement;
    hide();
  });
  document.addEventListener("pointerdown", (event) => { if (!event.target.closest("svg")) hide(); });
  // What is scrolled away from takes its words along; a pointer that has lost its mark says so itself.
  addEventListener("scroll", () => {
    const about = shown || focused();
    if (!about) return;
    const box = about.getBoundingClientRect();
    if (box.bottom > 0 && box.top < innerHeight) show(about);
    else tip.hidden = true;
  }, { passive: true });

  // The scheme asked for, else the system's. A page inside another may not store anything: then the choice lasts as long as the page.
  const KEY = "mixopt-theme", SCHEMES = ["system", "light", "dark"], button = document.getElementById("theme");
  const remembered = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
  let scheme = SCHEMES.includes(remembered()) ? remembered() : "system";
  function dress() {
    if (scheme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = scheme;
    button.textContent = `Theme: ${scheme}`;
  }
  button.addEventListener("click", () => {
    scheme = SCHEMES[(SCHEMES.indexOf(scheme) + 1) % SCHEMES.length];
    try { localStorage.setItem(KEY, scheme); } catch { /* nothing to remember it in */ }
    dress();
  });
  button.hidden = false;
  dress();

  for (const copy of document.querySelectorAll(".command button")) {
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      const text = copy.parentElement.querySelector("code");
      try {
        await navigator.clipboard.writeText(text.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        copy.textContent = "Selected";
      }
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }
})();
