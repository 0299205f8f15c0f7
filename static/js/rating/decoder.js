/* A worker that decodes pictures beside the page: {id, blob} in, {id, picture} or {id, error} out. */

import { decode } from "./png.js";

addEventListener("message", async ({ data: { id, blob } }) => {
  try {
    const picture = await decode(await blob.arrayBuffer());
    postMessage({ id, picture }, [picture.samples.buffer]);
  } catch (error) {
    postMessage({ id, error: error.message });
  }
});
