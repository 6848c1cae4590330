// What can a reader do with the page? Search and filter the errors; all else works without this script.
(() => {
  "use strict";
  const STEP = 50; // errors shown at once
  const page = document.documentElement;
  page.classList.add("js");

  // Only boxes that scroll are stops on the way of the Tab key.
  const boxes = document.querySelectorAll(".scroll, pre");
  const stops = () => {
    for (const box of boxes) {
      const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
      box.tabIndex = scrolls ? 0 : -1;
    }
  };
  addEventListener("resize", stops);
  document.addEventListener("toggle", stops, true);

  const table = document.getElementById("errors");
  if (!table) return stops();
  const [search, truth, given, sure, slice, clear, found, more] = [
    "search", "truth", "given", "sure", "slice", "clear", "found", "more",
  ].map((id) => document.getElementById(id));
  const choices = [truth, given, sure, slice].filter(Boolean); // of slices there may be none
  const rows = [...table.tBodies[0].rows];
  const words = rows.map((row) => row.textContent.toLowerCase());
  let limit = STEP;

  const fits = (row, place, wanted) => {
    if (truth.value && row.dataset.t !== truth.value) return false;
    if (given.value && row.dataset.g !== given.value) return false;
    if (slice?.value && !row.dataset.c.split(" ").includes(slice.value)) return false;
    if (sure.value) {
      const [low, high] = sure.value.split(" to ").map(Number);
      const stated = Number(row.dataset.s);
      if (stated < low || (stated >= high && high < 100)) return false;
    }
    return wanted.every((word) => words[place].includes(word));
  };

  const show = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let fitting = 0;
    rows.forEach((row, place) => {
      const fit = fits(row, place, wanted);
      fitting += fit;
      row.hidden = !fit || fitting > limit;
    });
    const chosen = wanted.length || choices.some((choice) => choice.value);
    const shown = Math.min(fitting, limit).toLocaleString("en");
    found.textContent = chosen
      ? `${fitting.toLocaleString("en")} of ${rows.length.toLocaleString("en")} fit; ${shown} shown`
      : `${shown} of ${rows.length.toLocaleString("en")} shown`;
    const left = Math.min(STEP, fitting - limit);
    if (left <= 0 && document.activeElement === more) table.parentElement.focus();
    more.hidden = left <= 0;
    more.textContent = `Show ${left} more`;
    clear.disabled = !chosen;
    stops();
  };

  const again = () => {
    limit = STEP;
    show();
  };
  search.addEventListener("input", again);
  for (const choice of choices) choice.addEventListener("change", again);
  clear.addEventListener("click", () => {
    for (const field of [search, ...choices]) field.value = "";
    again();
    search.focus();
  });
  more.addEventListener("click", () => {
    limit += STEP;
    show();
  });
  show();
})();
