// Drawing with WebGL: points, boxes as lines of a width in pixels, and the camera that orbits a target. z is up.

const POINT_SHADER = `
attribute vec3 position; attribute vec4 colour; uniform mat4 matrix; uniform float size; varying vec3 tint;
void main() {
  tint = colour.rgb;
  gl_PointSize = size;
  gl_Position = colour.a < 0.5 ? vec4(2.0, 2.0, 2.0, 1.0) : matrix * vec4(position, 1.0);  // without alpha: out of sight
}`;
const LINE_SHADER = `
attribute vec3 start; attribute vec3 end; attribute vec2 corner; attribute vec3 colour;
uniform mat4 matrix; uniform vec2 pixels; uniform float width; uniform float near; varying vec3 tint;
void main() {
  tint = colour;
  vec4 a = matrix * vec4(start, 1.0), b = matrix * vec4(end, 1.0);
  if (a.w < near && b.w >= near) a = mix(b, a, (b.w - near) / (b.w - a.w));
  if (b.w < near && a.w >= near) b = mix(a, b, (a.w - near) / (a.w - b.w));
  vec2 along = (b.xy / b.w - a.xy / a.w) * pixels;
  along = length(along) < 1e-6 ? vec2(1.0, 0.0) : normalize(along);
  vec4 here = corner.x < 0.5 ? a : b;
  here.xy += vec2(-along.y, along.x) * corner.y * width / pixels * here.w;
  gl_Position = here;
}`;
const FRAGMENT_SHADER = "precision mediump float; varying vec3 tint; void main() { gl_FragColor = vec4(tint, 1.0); }";
const FIELD_OF_VIEW = 55 * Math.PI / 180;

class Camera {
  constructor(position, target) {
    this.first = { position, target };
    this.reset();
  }

  reset() {
    const { position, target } = this.first;
    const offset = position.map((value, axis) => value - target[axis]);
    this.target = [...target];
    this.distance = Math.max(Math.hypot(...offset), 1e-4);
    this.yaw = Math.atan2(offset[1], offset[0]);
    this.pitch = Math.asin(offset[2] / this.distance);
  }

  fromAbove() {
    this.yaw = Math.PI;
    this.pitch = Math.PI / 2;
  }

  orbit(x, y) {
    this.yaw -= x * 0.006;
    this.pitch = Math.min(Math.max(this.pitch + y * 0.006, -Math.PI / 2), Math.PI / 2);
  }

  zoom(factor) {
    this.distance = Math.min(Math.max(this.distance * factor, this.first.nearest || 0.02), 1e6);
  }

  // Right, up and away from the camera. Looking straight down they stay defined, since they come from the angles.
  axes() {
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    return { right: [-sy, cy, 0], up: [-sp * cy, -sp * sy, cp], away: [-cp * cy, -cp * sy, -sp] };
  }

  position() {
    const { away } = this.axes();
    return this.target.map((value, axis) => value - away[axis] * this.distance);
  }

  pan(x, y, height) {
    const { right, up } = this.axes();
    const metres = 2 * Math.tan(FIELD_OF_VIEW / 2) * this.distance / height;
    this.target = this.target.map((value, axis) => value + (-x * right[axis] + y * up[axis]) * metres);
  }

  get near() {
    return this.distance / 500;
  }

  // Column-major projection times view.
  matrix(aspect) {
    const { right, up, away } = this.axes();
    const eye = this.position(), dot = (axis) => axis[0] * eye[0] + axis[1] * eye[1] + axis[2] * eye[2];
    const f = 1 / Math.tan(FIELD_OF_VIEW / 2), near = this.near, far = this.distance * 100;
    const a = (far + near) / (far - near), b = -2 * far * near / (far - near), s = f / aspect;
    const rows = [
      [right[0] * s, right[1] * s, right[2] * s, -dot(right) * s],
      [up[0] * f, up[1] * f, up[2] * f, -dot(up) * f],
      [away[0] * a, away[1] * a, away[2] * a, -dot(away) * a + b],
      [away[0], away[1], away[2], -dot(away)],
    ];
    return new Float32Array([0, 1, 2, 3].flatMap((column) => rows.map((row) => row[column])));
  }
}

class Renderer {
  constructor(canvas) {
    this.canvas = canvas;
    const gl = this.gl = canvas.getContext("webgl", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser offers no WebGL, which the page draws with");
    this.pointProgram = this.program(POINT_SHADER);
    this.lineProgram = this.program(LINE_SHADER);
    [this.positions, this.colours, this.lines] = [gl.createBuffer(), gl.createBuffer(), gl.createBuffer()];
    this.lineCount = 0;
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
  }

  program(vertex) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, FRAGMENT_SHADER]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    return program;
  }

  fill(buffer, values) {
    this.gl.bindBuffer(this.gl.ARRAY_BUFFER, buffer);
    this.gl.bufferData(this.gl.ARRAY_BUFFER, values, this.gl.DYNAMIC_DRAW);
  }

  setPoints(positions) { this.fill(this.positions, positions); }

  setColours(colours) { this.fill(this.colours, colours); }

  // Segments: {start, end, colour, width}. Each becomes two triangles.
  setLines(segments) {
    const values = new Float32Array(segments.length * 6 * 11);
    let at = 0;
    for (const { start, end, colour, width } of segments)
      for (const [along, across] of [[0, -1], [0, 1], [1, -1], [1, -1], [0, 1], [1, 1]]) {
        values.set([...start, ...end, along, across * width, colour[0] / 255, colour[1] / 255, colour[2] / 255], at);
        at += 11;
      }
    this.lineCount = segments.length * 6;
    this.fill(this.lines, values);
  }

  resize(scale) {
    const width = Math.max(1, Math.round(this.canvas.clientWidth * scale)), height = Math.max(1, Math.round(this.canvas.clientHeight * scale));
    if (this.canvas.width !== width || this.canvas.height !== height) [this.canvas.width, this.canvas.height] = [width, height];
  }

  attribute(program, name, size, type, stride, offset) {
    const gl = this.gl, place = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, type, type === gl.UNSIGNED_BYTE, stride, offset);
  }

  draw(camera, { count, size, background, scale }) {
    const gl = this.gl, { width, height } = this.canvas, matrix = camera.matrix(width / height);
    gl.viewport(0, 0, width, height);
    gl.clearColor(background[0] / 255, background[1] / 255, background[2] / 255, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    if (count) {
      const program = this.start(this.pointProgram, matrix);
      gl.uniform1f(gl.getUniformLocation(program, "size"), size * scale);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.positions);
      this.attribute(program, "position", 3, gl.FLOAT, 12, 0);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.colours);
      this.attribute(program, "colour", 4, gl.UNSIGNED_BYTE, 4, 0);
      gl.drawArrays(gl.POINTS, 0, count);
    }
    if (this.lineCount) {
      const program = this.start(this.lineProgram, matrix);
      gl.uniform2f(gl.getUniformLocation(program, "pixels"), width / 2, height / 2);
      gl.uniform1f(gl.getUniformLocation(program, "width"), 1.1 * scale);
      gl.uniform1f(gl.getUniformLocation(program, "near"), camera.near);
      gl.bindBuffer(gl.ARRAY_BUFFER, this.lines);
      for (const [name, length, offset] of [["start", 3, 0], ["end", 3, 12], ["corner", 2, 24], ["colour", 3, 32]])
        this.attribute(program, name, length, gl.FLOAT, 44, offset);
      gl.drawArrays(gl.TRIANGLES, 0, this.lineCount);
    }
  }

  // Waits until all is drawn. Without it a slow machine would queue frames, and seem to be quick.
  finish() {
    this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, new Uint8Array(4));
  }

  start(program, matrix) {
    const gl = this.gl;
    for (let place = 0; place < 4; place++) gl.disableVertexAttribArray(place);
    gl.useProgram(program);
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "matrix"), false, matrix);
    return program;
  }
}

// The twelve edges of a box `x y z length width height yaw`, and a tick from its centre out through the front face.
function boxSegments(box, colour, thickness = 1) {
  const [x, y, z, length, breadth, height, yaw] = box, c = Math.cos(yaw), s = Math.sin(yaw);
  const place = (a, b, h) => [x + c * a * length - s * b * breadth, y + s * a * length + c * b * breadth, z + h * height];
  const around = [[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]];
  const segments = [{ start: [x, y, z], end: place(0.7, 0, 0), colour, width: thickness }];
  around.forEach(([a, b], k) => {
    const [next, after] = around[(k + 1) % 4];
    for (const h of [-0.5, 0.5]) segments.push({ start: place(a, b, h), end: place(next, after, h), colour, width: thickness });
    segments.push({ start: place(a, b, -0.5), end: place(a, b, 0.5), colour, width: thickness });
  });
  return segments;
}
