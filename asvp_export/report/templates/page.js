// Lays the two outputs of each visual sample over each other, with a line between them that a range input moves.
for (const slider of document.querySelectorAll(".slider")) {
  const sheet = slider.closest(".sheet");
  const compare = document.createElement("div");
  compare.className = "compare";
  for (const kind of ["original", "protected"]) {
    const picture = sheet.querySelector(`.${kind} img`).cloneNode();
    picture.className = kind;
    compare.append(picture);
  }
  const range = document.createElement("input");
  range.type = "range";
  range.setAttribute("aria-label", `${slider.dataset.name}: original to the left of the line, protected to the right`);
  const move = () => {
    compare.style.setProperty("--at", `${range.value}%`);
    range.setAttribute("aria-valuetext", `line at ${range.value} %`);
  };
  range.addEventListener("input", move);
  const line = document.createElement("span");
  line.className = "line";
  compare.append(range, line);
  for (const kind of ["original", "protected"]) {
    const tag = document.createElement("span");
    tag.className = `tag ${kind}`;
    tag.textContent = kind;
    tag.setAttribute("aria-hidden", "true");
    compare.append(tag);
  }
  const caption = document.createElement("figcaption");
  caption.textContent = "Drag the line, or move it with the arrow keys.";
  slider.append(compare, caption);
  slider.hidden = false;
  move();
}
