// The pictures. They stay text until one is needed.

const Crops = (() => {
  const encoded = readJson('crops');
  const loaded = new Map();

  const has = (figure) => Object.hasOwn(encoded, figure.id);
  const url = (figure) => `data:image/jpeg;base64,${encoded[figure.id]}`;

  // The picture for drawing, or null while it loads; `whenLoaded` is called then.
  function image(figure, whenLoaded) {
    if (!has(figure)) return null;
    if (!loaded.has(figure.id)) {
      const picture = new Image();
      picture.onload = whenLoaded;
      picture.src = url(figure);
      loaded.set(figure.id, picture);
    }
    const picture = loaded.get(figure.id);
    return picture.complete && picture.naturalWidth ? picture : null;
  }

  function thumbnail(whenLoaded) {
    const picture = new Image();
    picture.onload = whenLoaded;
    picture.src = `data:image/jpeg;base64,${readJson('slide')}`;
    return picture;
  }

  return { has, url, image, thumbnail };
})();
