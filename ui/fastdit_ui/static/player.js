// One video holds dense, sparse and difference side by side; three canvases show its parts.
const setUp = () => {
  const root = element.querySelector('.fd-player');
  if (!root) return;
  const value = props.value;
  root.hidden = !value || !value.src;
  if (root.hidden) return;
  const video = root.querySelector('video');
  const panes = [...root.querySelectorAll('canvas')];
  const slider = root.querySelector('.fd-frame');
  const play = root.querySelector('.fd-play');
  const text = root.querySelector('.fd-frame-text');
  const last = value.frames - 1;
  slider.max = last;
  root.querySelector('.fd-top').textContent = `${value.top.toFixed(2)} of full scale, mean over RGB`;
  panes.forEach((pane) => { pane.width = value.width; pane.height = value.height; });

  const draw = () => panes.forEach((pane, i) => pane.getContext('2d').drawImage(
    video, i * value.width, 0, value.width, value.height, 0, 0, value.width, value.height));
  const say = (frame) => {
    slider.value = frame;
    const words = `frame ${frame + 1} of ${value.frames}, PSNR ${value.psnr[frame].toFixed(1)} dB`;
    text.textContent = words;
    slider.setAttribute('aria-valuetext', words);
    root.dataset.frame = frame;
  };
  const showButton = () => {
    play.innerHTML = video.paused ? '&#9654;' : '&#10074;&#10074;';
    play.setAttribute('aria-label', video.paused ? 'Play' : 'Pause');
  };
  // The middle of a frame, so that rounding never lands on its neighbour.
  const seek = (frame) => { video.currentTime = (frame + 0.5) / value.fps; say(frame); };
  const onFrame = (now, meta) => {
    draw();
    if (!video.paused) say(Math.min(last, Math.floor(meta.mediaTime * value.fps + 0.5)));
    video.requestVideoFrameCallback(onFrame);
  };

  video.loop = true;
  video.onseeked = () => { draw(); root.dataset.drawn = slider.value; };
  video.onplay = showButton;
  video.onpause = showButton;
  video.onerror = () => { text.textContent = 'This browser cannot play the video (H.264).'; };
  video.onloadeddata = () => { root.dataset.ready = '1'; seek(0); };
  slider.oninput = () => { video.pause(); seek(Number(slider.value)); };
  play.onclick = () => { if (video.paused) video.play(); else { video.pause(); seek(Number(slider.value)); } };
  if (video.requestVideoFrameCallback) {
    if (!video.dataset.follows) { video.dataset.follows = '1'; video.requestVideoFrameCallback(onFrame); }
  } else {
    video.ontimeupdate = () => { draw(); say(Math.min(last, Math.floor(video.currentTime * value.fps))); };
  }
  delete root.dataset.ready;
  video.src = value.src;
};
setUp();
watch('value', setUp);
