const MINUTE = 60, HOUR = 60 * MINUTE, DAY = 24 * HOUR;

/** Seconds as people say them: "45 s", "3 min", "1 h 20 min", "2 days". */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < MINUTE) return `${s} s`;
  const minutes = Math.round(s / MINUTE);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 24 * 60) return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
  const days = Math.round(s / DAY);
  return days === 1 ? "1 day" : `${days} days`;
}
