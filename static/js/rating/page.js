/** The element of the rating page with that data attribute, the first in the page's order. */
export const part = (name) => document.querySelector(`[data-${name}]`);
