declare module 'elkjs/lib/elk-api.js' {
  export * from 'elkjs/lib/elk-api';
  export { default } from 'elkjs/lib/elk-api';
}
