// Sliders turn the image; the arrow keys go to the case before and after.
for (const input of document.querySelectorAll("[data-turns]")) {
  const unit = ["across", "down"].includes(input.dataset.turns) ? "%" : "";
  input.addEventListener("input", () =>
    document.body.style.setProperty("--" + input.dataset.turns, input.value + unit));
}
document.addEventListener("keydown", (event) => {
  const rel = {ArrowLeft: "prev", ArrowRight: "next"}[event.key];
  if (rel && event.target.tagName !== "INPUT" && !event.altKey && !event.ctrlKey && !event.metaKey)
    document.querySelector(`a[rel=${rel}]`)?.click();
});
