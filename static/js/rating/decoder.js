/* A worker that decodes pictures beside the page: {id, blob} in, {id, picture} or {id, error} out. */

import { halved } from "./levels.js";
import { decode } from "./png.js";

const LARGE = 1_500_000; // pixels: halving as many would be noticed where keys are waited for

addEventListener("message", async ({ data: { id, blob } }) => {
  try {
    const picture = await decode(await blob.arrayBuffer());
    picture.levels = [picture];
    if (picture.columns * picture.rows > LARGE) picture.levels.push(halved(picture));
    postMessage({ id, picture }, picture.levels.map(({ samples }) => samples.buffer));
  } catch (error) {
    postMessage({ id, error: error.message });
  }
});
