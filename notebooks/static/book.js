// Code, outputs and formulas that scroll are reached by the keyboard too.
document.fonts.ready.then(() => {
  for (const one of document.querySelectorAll("pre, .math-wrapper > div, .table-wrapper"))
    if (one.scrollWidth > one.clientWidth || one.scrollHeight > one.clientHeight) one.tabIndex = 0;
});
// What the theme leaves out for a screen reader.
for (const one of document.querySelectorAll("[role=heading]:not([aria-level])")) one.ariaLevel = "2";
if (!document.querySelector("h1")) document.querySelector("#search-results")?.insertAdjacentHTML("beforebegin", "<h1>Search</h1>");
for (const [drawer, name] of [[".sidebar-drawer", "pages"], [".toc-drawer", "on this page"]])
  document.querySelector(drawer)?.setAttribute("aria-label", name);
