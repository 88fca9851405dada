// Tables sort by the column whose heading is pressed; without this they are sorted by what is worst.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    // Chromium leaves real buttons out of the headings that it repeats on every printed page.
    const button = document.createElement("span");
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.append(...heading.childNodes);
    heading.append(button);
    const sort = () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      const order = (row) => Number(row.cells[column].dataset.order);
      const rows = [...table.tBodies[0].rows];
      rows.sort((left, right) => (ascending ? order(left) - order(right) : order(right) - order(left)));
      table.tBodies[0].append(...rows);
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    };
    button.addEventListener("click", sort);
    button.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        sort();
      }
    });
  });
}
