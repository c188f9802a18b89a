// Every film of the page is looked at; the arrow keys go to the case before and after.
for (const still of document.querySelectorAll("[data-film]"))
  film({ parentElement: still, data: JSON.parse(still.dataset.film) });
document.addEventListener("keydown", (event) => {
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const other = event.shiftKey || event.altKey || event.ctrlKey || event.metaKey;
  if (rel && !other && event.target.tagName !== "INPUT") document.querySelector(`a[rel=${rel}]`)?.click();
});
