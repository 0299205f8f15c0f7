/** "32 %", with a space where no line ends. Pages that the server writes have it from medsyn/percent.py. */
export const percent = (number) => `${number}\u00a0%`;
