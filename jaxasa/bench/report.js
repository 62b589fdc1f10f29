// Shows the questions that the three lists ask for, and the scenes that have any of them.
const lists = [...document.querySelectorAll("#filters select")];
function filter() {
  let shown = 0;
  for (const card of document.querySelectorAll(".scene")) {
    let any = false;
    for (const question of card.querySelectorAll(".question")) {
      const wanted = lists.every((list) => !list.value || question.dataset[list.name] === list.value);
      question.hidden = !wanted;
      any ||= wanted;
      shown += wanted;
    }
    card.hidden = !any;
    if (!any) card.querySelector("audio")?.pause();
  }
  document.getElementById("shown").textContent = shown;
}
for (const list of lists) list.addEventListener("change", filter);
// A reloaded page keeps what was chosen.
filter();
// One sound at a time.
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);
