// Moves the bar of a picture that is being drawn, and loads the page again once it is done.
// Without this script the page loads itself again every two seconds.
const bar = document.querySelector("progress[data-events]");
if (bar) {
  const events = new EventSource(bar.dataset.events);
  events.addEventListener("progress", (event) => {
    const state = JSON.parse(event.data);
    if (state.steps) { bar.max = state.steps; bar.value = state.step; }
    if (state.done) { events.close(); location.reload(); }
  });
}
