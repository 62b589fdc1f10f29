// Shows only the questions that the three filters select, and the scenes that have any of them.
const filters = [...document.querySelectorAll("#filters select")];
function apply() {
  let shown = 0;
  for (const scene of document.querySelectorAll(".scene")) {
    let any = false;
    for (const question of scene.querySelectorAll(".question")) {
      const matches = filters.every((f) => !f.value || question.dataset[f.name] === f.value);
      question.hidden = !matches;
      any ||= matches;
      shown += matches;
    }
    scene.hidden = !any;
    if (!any) scene.querySelector("audio")?.pause();
  }
  document.getElementById("shown").textContent = shown;
}
for (const filter of filters) filter.addEventListener("change", apply);
// Browsers keep the filters' values when a page is reloaded.
apply();
// One sound at a time.
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);
