// Code and outputs that scroll are reached by the keyboard too.
for (const one of document.querySelectorAll("pre")) if (one.scrollWidth > one.clientWidth) one.tabIndex = 0;
